// Everything works without this file: it only keeps two pages fresh while somebody looks.
"use strict";

const ROWS = 200;
const REFRESH = 5000;
const pause = document.getElementById("pause");
let paused = false;

pause.closest(".live").hidden = false;
pause.addEventListener("click", () => {
  paused = !paused;
  pause.setAttribute("aria-pressed", String(paused));
});

// The overview: its content is fetched again, unless somebody is in the middle of it.
const fresh = document.getElementById("fresh");

function isInUse() {
  const selection = document.getSelection();
  return document.hidden || fresh.contains(document.activeElement) ||
    (selection && !selection.isCollapsed && fresh.contains(selection.anchorNode));
}

async function refresh() {
  if (paused || isInUse()) return;
  try {
    const answer = await fetch(location.href, { credentials: "same-origin" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const found = page.getElementById("fresh");
    if (found && !paused && !isInUse()) fresh.replaceChildren(...found.childNodes);
  } catch {
    // the dashboard is away: what is shown says when it was made
  }
}

if (fresh) setInterval(refresh, REFRESH);

// The events: each comes as a row of the table, made on the server.
const log = document.getElementById("log");

function listen() {
  const told = document.getElementById("told");
  const status = document.getElementById("live");
  const late = [];
  const say = (text) => { if (status.textContent !== text) status.textContent = text; };
  const show = (html) => {
    told.insertAdjacentHTML("afterbegin", html);
    document.getElementById("none")?.remove();
    while (told.rows.length > ROWS) told.deleteRow(-1);
  };
  const source = new EventSource(log.dataset.live);
  source.addEventListener("open", () => say("Live"));
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) say("Not live");
  });
  source.addEventListener("away", () => say("The lock store is away"));
  source.addEventListener("told", (event) => {
    if (paused) {
      late.push(event.data);
      if (late.length > ROWS) late.shift();
    } else show(event.data);
  });
  pause.addEventListener("click", () => {
    if (!paused) late.splice(0).forEach(show);
  });
}

if (log) listen();
