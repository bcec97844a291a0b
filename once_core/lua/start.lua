-- start: in the worker, before the body. Only a message known to be dead is refused; in doubt
-- it runs.
-- KEYS: record
-- ARGV: id ticket retries attempt where lease ttl heal longest window queued running give_up
--   ticket    > 0 claimed; 0 or a negative nonce: sent without a claim
--   lease ttl heal longest   ms; longest: of a deferral
--   window    ms, or 0
--   queued    1: the scope limits what waits      running   1: it limits what runs
--   give_up   1: on_overlap is skip or raise
-- Returns: started fence waited found
--          overlap|skipped|superseded|repeated|duplicate since remaining where holder
--          early remaining
-- O(1).

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

local waiting, behind, running = record.w, record.n, record.x0
local spent, replaced = record.z, record.o

local function end_with(status, part)
  save(true)
  part = part or {}
  return answer(status, part.s or now, (part.u or now) - now, part.b or '', part.j or part.i or '')
end

local function named(part) return part and part.i == id end

if running and running.a == attempt then
  return answer('started', running.f, 0, 1)  -- its own first answer was lost
end

local own = named(running)
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
local is_starving = not (limited and running) and waiting and waiting.p == 1 and now >= waiting.d
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

if limited and running then
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
  return end_with('overlap', running)
end

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
  record.x0 = {
    a = attempt, b = where, i = id, r = retries, t = ticket, s = now, u = now + lease,
    k = lease, f = fence,
  }
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
