-- start: in the worker, before the body. Only a message known to be dead is refused; in doubt
-- it runs.
-- KEYS: record
-- ARGV: id ticket retries attempt where lease ttl heal longest window queued running give_up limit park again
--   ticket    > 0 claimed; 0 or a negative nonce: sent without a claim
--   lease ttl heal longest   ms; longest: of a deferral
--   window    ms, or 0
--   queued    1: the scope limits what waits      running   1: it limits what runs
--   give_up   1: on_overlap is skip or raise
--   limit     attempts that may run at once
--   park      ms for which its place in the line is kept if it cannot start; 0: it does not wait.
--             Only for whoever has no message: nothing of it waits in this record
--   again     1: it was put back because others ran, and counted then as away
-- Returns: started fence waited found
--          overlap|skipped|superseded|repeated|duplicate since remaining turn where holder
--            turn: ms until it may come back; 0 where nobody can say
--          early remaining
-- O(1), but for those who run or wait in the line.

-- Nearly every start: the record is the waiting part of this message and nothing else. The
-- general way below does the same in three times the time.
if ARGV[3] == '0' and ARGV[10] == '0' and ARGV[12] == '1' then
  local seen = redis.call('HMGET', KEYS[1], 'wt', 'ws', 'wu', 'l', 'v', 'wi', 'wd', 'wh', 'we',
    'wg', 'wz')
  local fields = 0
  for index = 1, 11 do if seen[index] then fields = fields + 1 end end
  if seen[1] == ARGV[2] and seen[5] and redis.call('HLEN', KEYS[1]) == fields then
    local clock, text = redis.call('TIME'), string.format
    local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
    if tonumber(seen[2]) <= now and now < tonumber(seen[3]) then
      local fence = text('%.0f', math.max(seen[4] + 1, clock[1] * 1000000 + clock[2]))
      redis.call('DEL', KEYS[1])
      redis.call('HSET', KEYS[1], 'x0a', ARGV[4], 'x0b', ARGV[5], 'x0i', ARGV[1],
        'x0t', ARGV[2], 'x0s', text('%.0f', now), 'x0u', text('%.0f', now + ARGV[6]),
        'x0k', ARGV[6], 'x0f', fence, 'l', fence, 'v', seen[5])
      redis.call('PEXPIRE', KEYS[1], ARGV[6])
      return 'started ' .. fence .. ' ' .. text('%.0f', now - seen[2]) .. ' 1'
    end
  end
end

-- prelude

local id, ticket, retries = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local attempt, where = ARGV[4], ARGV[5]
local lease, ttl, heal = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local longest, window = tonumber(ARGV[9]), tonumber(ARGV[10])
local queued, limited, give_up = ARGV[11] == '1', ARGV[12] == '1', ARGV[13] == '1'
local limit, park, again = tonumber(ARGV[14]), tonumber(ARGV[15]), ARGV[16] == '1'
local SOONEST = 100

local waiting, behind = record.w, record.n
local spent, replaced = record.z, record.o

local function end_with(status, part, turn)
  save(true)
  part = part or {}
  return answer(status, part.s or now, (part.u or now) - now, turn or 0, part.b or '',
    part.j or part.i or '')
end

-- Each who is put back comes behind those before it, one run after the other: if all asked again
-- and again, as many would be refused as there are. How long a run takes is known once one ended.
local function turn_after(running)
  local turns = record.t or setmetatable({}, ZERO)
  record.t, turns.u = turns, now + TURNS
  if not again then turns.c = turns.c + 1 end
  if turns.e == 0 then return 0 end
  local held = now - running.s
  -- one that takes longer than others is asked for ever more rarely
  local left = held < turns.e and turns.e - held or math.ceil(held / 8)
  local taken = again and turns.c <= 1 and 0 or turns.d or 0  -- by itself, if nobody else is away
  local turn = math.max(taken, now + math.max(left, SOONEST))
  -- it comes back by then in any case
  if turn > math.min(now + longest, running.u) then return 0 end
  turns.d = turn + math.ceil(turns.e / limit)
  return turn - now
end

local function named(part) return part and part.i == id end

local mine = with('x', 'a', attempt)
if mine then
  -- its own first answer was lost, or the slot was given to it while it was parked
  local running = record[mine]
  running.u, running.k, running.b = now + lease, lease, where
  save(true)
  return answer('started', running.f, 0, 1)
end

-- a slot that its holder has left without a word belongs to whoever was here before
local slots = all('x')
while limited and #slots < limit do
  local first = first_parked()
  if not first or record[first].a == attempt then break end
  free(unused('x'))
  if #all('x') == #slots then break end
  slots = all('x')
end
local own = with('x', 'i', id) ~= nil
local running
for _, name in ipairs(slots) do
  local part = record[name]
  if part.i == id or not (running and running.i == id) and (not running or part.u < running.u) then
    running = part
  end
end
local is_full = limited and running and (own or #slots >= limit)
local stands = stands_for(waiting, id, ticket, retries) or stands_for(behind, id, ticket, retries)
local mentioned = named(waiting) or named(behind)

for _, name in ipairs(MARKS) do
  local done = record[name]
  if done and done.i == id and done.t == ticket and retries <= done.r then
    take_away(id, ticket, retries)
    return end_with('repeated', done)
  end
end
if named(waiting) and retries < waiting.r and ticket > 0 and ticket < waiting.t then
  return end_with('repeated', waiting)
end
-- Replaced again and again while it waits in a backlog, a unit would never run: now and then an
-- older message runs in the place of the newest, which still runs after it.
local is_starving = not is_full and waiting and waiting.p == 1 and now >= waiting.d
  and now - math.max(waiting.s, waiting.q or 0) >= heal
  and ticket < waiting.t and ticket > (replaced and replaced.f or 0)

if ticket > 0 and not (own or stands or mentioned) then
  if replaced and ticket <= replaced.t and not is_starving then
    return end_with('superseded', waiting or running)
  end
  if spent and ticket == spent.t and id ~= spent.i and retries == 0 then
    return end_with('superseded', spent)
  end
end

if is_full then
  local place = with('p', 'a', attempt)
  -- every step reads the whole line: whoever comes when it is full asks again without a place
  if park > 0 and (place or #all('p') < LONGEST_LINE) then
    place = place or unused('p')
    local parked = record[place] or setmetatable({ a = attempt, b = where, i = id, t = number() }, ZERO)
    parked.u, parked.k, parked.c = now + park, park, limit
    record[place] = parked
    return end_with('overlap', running)
  end
  local mine = waiting and (waiting.t == ticket or named(waiting))
  if own and retries <= running.r then running.m = 1 end
  if give_up and not own and retries == 0 then
    if mine then record.w, record.n = record.n, nil end
    return end_with('skipped', running)
  end
  if mine then
    waiting.h = math.max(now + longest, waiting.d) + heal
    waiting.u = math.max(waiting.u, now + longest + ttl)
  elseif queued and ticket <= 0 and retries == 0 and not (own or mentioned) then
    if waiting then return end_with('duplicate', waiting) end
    record.w = wait(id, 0, now + longest, ttl, heal)
  end
  return end_with('overlap', running, own and 0 or turn_after(running))
end
if again and record.t then record.t.c = math.max(record.t.c - 1, 0) end

if waiting and waiting.p == 1 and ticket > 0 then
  if now < waiting.d and ticket <= waiting.t then
    save(true)
    return answer('early', waiting.d - now)
  end
  replace_below(math.min(ticket, waiting.t), ttl)
end

if ticket > 0 and record.o then record.o.f = math.max(record.o.f or 0, ticket) end

local fence = number()
if limited then
  local parked = with('p', 'a', attempt)
  if parked then record[parked] = nil end
  record[unused('x')] = lease_of(attempt, where, id, retries, ticket, now, lease, fence)
end

local part = stands_for(waiting, id, ticket, retries) and waiting
  or stands_for(behind, id, ticket, retries) and behind
  or named(waiting) and waiting or named(behind) and behind or nil
local waited = part and now - part.s or 0
if is_starving then waiting.s = now end
if part and part == waiting then
  if part.c > 0 then
    record.z = { t = part.t, i = id, u = math.max(part.u, now + ttl) }
  end
  if window > 0 and retries == 0 then
    local till = math.max(record.q and record.q.u or 0, part.d + window)
    record.q = { u = till, i = id, s = now }
  end
  record.w, record.n = behind, nil
elseif part then
  record.n = nil
end
save(true)
return answer('started', fence, waited, part and 1 or 0)
