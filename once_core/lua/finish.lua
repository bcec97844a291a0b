-- finish: after the body. Frees the lease; a retry waits, or waits behind the one that waits.
-- KEYS: record
-- ARGV: id ticket retries attempt outcome delay ttl heal keep_for queued mark again
--   outcome   success, failure, retry or interrupted
--   delay ttl heal keep_for   ms; delay: of the retry
--   queued    1: the scope limits what waits
--   mark      hold: where a done mark is due, answer so and keep the lease, for the mark may be
--             left only after the result is stored; write: leave it now; none: no copy of it
--             can come
--   again     1: sent before, perhaps heard: where a mark is due it is left at once, and a retry
--             adds a part only where this attempt still runs
-- Returns: finished held | due held | lost
-- Opens with a command that a full server accepts.

-- Nearly every end: the record is the running part of this attempt and nothing else.
if ARGV[5] ~= 'retry' and ARGV[9] == '0' and ARGV[11] ~= 'write' then
  local seen = redis.call('HMGET', KEYS[1], 'x0a', 'x0s', 'x0u', 'x0k', 'x0b', 'x0i', 'x0r', 'x0t',
    'x0f', 'x0z', 'l', 'v')
  local fields = 0
  for index = 1, 12 do if seen[index] then fields = fields + 1 end end
  if seen[1] == ARGV[4] and redis.call('HLEN', KEYS[1]) == fields then
    local clock = redis.call('TIME')
    local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
    local held = now - seen[2]
    if now < tonumber(seen[3]) and seen[3] - now <= tonumber(seen[4])
      and (held <= 60000 or ARGV[11] == 'none') then
      redis.call('DEL', KEYS[1])
      return 'finished ' .. string.format('%.0f', held)
    end
  end
end

-- prelude

local id, ticket, retries = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local attempt, outcome, delay = ARGV[4], ARGV[5], tonumber(ARGV[6])
local ttl, heal, keep_for = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local queued, mark, again = ARGV[10] == '1', ARGV[11], ARGV[12] == '1'
local LONG = 60000

local function mark_done(mark)
  local marks = { mark }
  for _, name in ipairs(MARKS) do
    local older = record[name]
    if older and not (older.i == mark.i and older.t == mark.t) then marks[#marks + 1] = older end
  end
  for index, name in ipairs(MARKS) do record[name] = marks[index] end
end

local slot = with('x', 'a', attempt)
local running = slot and record[slot]
local lost = not running
local held = running and now - running.s or 0
if lost then
  drop_own(id, retries)
else
  if outcome ~= 'interrupted' and mark ~= 'none' then
    local due = running.m == 1 or held > LONG
    if due and mark == 'hold' and not again then return answer('due', held) end
    if due or mark == 'write' then
      mark_done({ i = id, r = retries, t = ticket, u = now + ttl })
    end
  end
  local turns = record.t
  if turns then
    if not again then
      turns.e = turns.e > 0 and math.ceil((3 * turns.e + held) / 4) or math.max(held, 1)
    end
    if turns.c == 0 then record.t = nil end
  end
  free(slot)
  if outcome == 'success' and keep_for > 0 then
    record.q = { u = now + keep_for, i = id, s = now }
  end
end
if outcome == 'retry' and queued and not (again and lost) then
  local waiting = record.w
  local part = wait(id, retries + 1, now + delay, ttl, heal)
  part.u = now + ttl
  if not waiting then
    record.w = part
  elseif not record.n and waiting.i ~= id and waiting.p ~= 1 then
    record.n = part
  end
end
save(true)
return answer(lost and 'lost' or 'finished', held)
