-- The record of one unit of work, and how every step loads and saves it.
--
-- One hash; a field is the letter of its part, then its own ("wt" is the ticket of the
-- waiting part). Times are milliseconds of Redis TIME, numbers from it are microseconds.
--   w   waiting        the message that may run next
--   n   then           a retry waiting behind it
--   x0  running        the attempt that holds the lease; x1 and on: more slots, with limit=
--   k   done           mark of an attempt that ended, for late copies of its message; k1 to k3:
--                      of those before it (several may have copies about)
--   z   spent          a ticket that had copies, and the only message that may run with it
--   o   replaced       tickets up to this one are dead (f: the highest of those that ran)
--   q   kept           publishes are refused until then
--   y   released       an attempt whose lease a person took away; y1 and on: more of them
--   p0  parked         who blocks until a slot is free, first come first served; p1 and on
--   t   turns          when those come back whose messages were put back: d the next moment that
--                      nobody was told, e the length of a run, c how many are away
--   l   last number given out (tickets and fences)      v   version of the format
-- Fields of parts:
--   a attempt  b host and pid  c copies  d due  e heal_every  f fence  g nonce of the claim
--   h heal_at  i message id  j id of the newest copy  k length of the lease  m redelivered
--   p replaces  q latest moment to which a burst is delayed  r retries  s since  t ticket
--   u until  x fingerprint  z suppressed
-- Fields this version does not know survive; `local` everywhere: one global assignment
-- would end a fakeredis server for good.

local KEY = KEYS[1]
local HEAL_FLOOR = 60000
local TEXT = { a = true, b = true, g = true, i = true, j = true, x = true }
local MARKS = { 'k', 'k1', 'k2', 'k3' }
local KNOWN = {}
for name in string.gmatch('w n k k1 k2 k3 z o q y t', '%w+') do KNOWN[name] = true end
local NUMBERED = { x = true, y = true, p = true }
local LONGEST_LINE = 128
local TURNS = 60000  -- ms for which turns are remembered: twice the longest deferral
local GRANTED = 3000  -- ms in which whoever was parked has to take up the slot that it was given
-- numbers that are 0 are not stored
local ZERO = { __index = { c = 0, e = 0, m = 0, p = 0, r = 0, t = 0, z = 0 } }

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local now_us = clock[1] * 1000000 + clock[2]

local stored = {}  -- the fields as they are in Redis
local record = {}  -- part -> field -> value
local last = 0  -- the last number given out
local unknown = false  -- fields of a newer version are there
local pruned = false  -- what is stored is not what counts any more

local function text(value)
  -- tostring() and .. keep 14 digits only; a ticket has 16
  if type(value) == 'number' then return string.format('%.0f', value) end
  return value
end

-- One text, words divided by blanks; what users choose (ids) comes last. A list of texts takes
-- Python's parser several times as long.
local function answer(...)
  local words = { ... }
  for index = 1, #words do words[index] = text(words[index]) end
  return table.concat(words, ' ')
end

local function is_known(name)
  if KNOWN[name] then return true end
  local number = string.match(name, '^%a(%d+)$')
  return number ~= nil and NUMBERED[string.sub(name, 1, 1)] == true
end

-- Names of the parts of one kind that are there, in order: slots, whoever is parked.
local function all(kind)
  local names = {}
  for name in pairs(record) do
    if string.match(name, '^' .. kind .. '%d+$') then names[#names + 1] = name end
  end
  table.sort(names, function(one, other)
    return tonumber(string.sub(one, 2)) < tonumber(string.sub(other, 2))
  end)
  return names
end

-- The name of the first part of a kind with this value in a field, if any.
local function with(kind, letter, value)
  for _, name in ipairs(all(kind)) do
    if record[name][letter] == value then return name end
  end
end

local function unused(kind)
  local number = 0
  while record[kind .. number] do number = number + 1 end
  return kind .. number
end

local function prune()
  for name, part in pairs(record) do
    -- a part without its end is a stray field: half of a write that a failover lost
    if not part.u or part.u <= now then record[name], pruned = nil, true end
  end
  for _, kind in ipairs({ 'x', 'p' }) do
    for _, name in ipairs(all(kind)) do
      local part = record[name]
      if part.k and part.u > now + part.k then
        -- the clock stepped back: hold the unit for one lease, not for the length of the step
        part.u, pruned = now + part.k, true
      end
    end
  end
  if record.t and record.t.u > now + TURNS then record.t, pruned = nil, true end
  for _, name in ipairs({ 'w', 'n', 'q' }) do
    local part = record[name]
    if part and part.s > now then
      local ahead = part.s - now
      part.s, part.u = now, part.u - ahead
      if name ~= 'q' then part.d, part.h, part.e = part.d - ahead, now, HEAL_FLOOR end
      pruned = true
    end
  end
  if record.n and not record.w then record.w, record.n, pruned = record.n, nil, true end
end

local function load()
  local flat = redis.call('HGETALL', KEY)
  for index = 1, #flat, 2 do
    local field, value = flat[index], flat[index + 1]
    local name, letter = string.sub(field, 1, -2), string.sub(field, -1)
    if is_known(name) then
      if not TEXT[letter] then value = tonumber(value) end
      local part = record[name]
      if not part then
        part = setmetatable({}, ZERO)
        record[name] = part
      end
      part[letter] = value
    elseif field ~= 'l' and field ~= 'v' then
      unknown = true
    end
    stored[field] = value
  end
  last = tonumber(stored.l) or 0
  prune()
end

-- Lua passes no more than some thousand arguments at once.
local function in_slices(command, words)
  for first = 1, #words, 1000 do
    redis.call(command, KEY, unpack(words, first, math.min(first + 999, #words)))
  end
end

-- Writes what changed. `opener`: begin with a command that a full server accepts, after which
-- it accepts the rest of the script too; without it a full server refuses the step as a whole.
local function save(opener)
  local latest, fields, set, gone = 0, {}, {}, {}
  for name, part in pairs(record) do
    latest = math.max(latest, part.u)
    for letter, value in pairs(part) do
      if value ~= 0 then
        local field = name .. letter
        fields[field] = true
        if stored[field] ~= value then
          set[#set + 1] = field
          set[#set + 1] = text(value)
        end
      end
    end
  end
  if latest == 0 and not unknown then
    if next(stored) then redis.call('DEL', KEY) end
    return
  end
  for field in pairs(stored) do
    if not fields[field] and is_known(string.sub(field, 1, -2)) then gone[#gone + 1] = field end
  end
  if #set == 0 and #gone == 0 then return end
  set[#set + 1], set[#set + 2] = 'l', text(last)
  if not stored.v then set[#set + 1], set[#set + 2] = 'v', '1' end
  local life = math.max(latest - now, 1)
  if unknown then life = math.max(life, redis.call('PTTL', KEY)) end
  local expires = opener and redis.call('PEXPIRE', KEY, text(life)) == 1
  if opener then in_slices('HDEL', gone) end
  in_slices('HSET', set)
  if not opener then in_slices('HDEL', gone) end
  if not expires then redis.call('PEXPIRE', KEY, text(life)) end
end

local function number()
  last = math.max(last + 1, now_us)
  return last
end

local function wait(id, retries, due, ttl, heal)
  return setmetatable({
    t = number(), i = id, r = retries, s = now, d = due, u = due + ttl,
    h = due + heal, e = heal,
  }, ZERO)
end

-- By its ticket; a retry (its part has a newer ticket) or an unclaimed message by its id.
local function stands_for(part, id, ticket, retries)
  if not part then return false end
  if part.t == ticket then return true end
  return part.i == id and part.r == retries and (retries > 0 or ticket <= 0)
end

local function replace_below(ticket, ttl)
  local till = math.max(now + ttl, record.w and record.w.u or 0)
  local old = record.o or { t = 0, u = 0 }
  record.o = { t = math.max(old.t, ticket - 1), u = math.max(old.u, till), f = old.f }
end

-- Forgets what waits under this id up to these retries: it runs, or has run, already.
local function drop_own(id, retries)
  for _, name in ipairs({ 'w', 'n' }) do
    local part = record[name]
    if part and part.i == id and part.r <= retries then record[name] = nil end
  end
  if not record.w then record.w, record.n = record.n, nil end
end

-- A copy may be sent, and does not count as one more doubling of the part's age.
local function heal_now(part, at)
  part.h, part.e = at, math.max(part.e / 2, math.min(part.e, HEAL_FLOOR))
end

-- The lease of an attempt: a slot of its own.
local function lease_of(attempt, where, id, retries, ticket, since, lease, fence)
  return setmetatable({
    a = attempt, b = where, i = id, r = retries, t = ticket, s = since, u = now + lease,
    k = lease, f = fence,
  }, ZERO)
end

local function first_parked()
  local first
  for _, name in ipairs(all('p')) do
    if not first or record[name].t < record[first].t then first = name end
  end
  return first
end

-- Frees a slot. Whoever has been parked longest gets it before anybody who comes now; its name
-- is published, and it asks for its place now and then in case it does not hear that.
local function free(slot)
  record[slot] = nil
  local first = first_parked()
  -- each counts by its own limit, which a deployment may just have lowered
  if not first or #all('x') >= math.max(record[first].c, 1) then return end
  local part = record[first]
  record[first] = nil
  record[slot] = lease_of(part.a, part.b, part.i, 0, part.t, now, GRANTED, number())
  -- it may be refused: who has no channels asks for its turn now and then
  redis.pcall('PUBLISH', KEY .. ':turn:' .. part.a, 'granted')
end

-- The message was taken away: its part goes, or may heal at once if copies are about.
local function take_away(id, ticket, retries)
  local found = false
  for _, name in ipairs({ 'w', 'n' }) do
    local part = record[name]
    if stands_for(part, id, ticket, retries) then
      found = true
      if part.c > 0 then
        heal_now(part, now)
      else
        record[name] = nil
      end
    end
  end
  if not record.w then record.w, record.n = record.n, nil end
  return found
end

load()
