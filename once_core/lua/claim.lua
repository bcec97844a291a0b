-- claim: before the publish. May this call be sent, and with which ticket?
-- KEYS: record
-- ARGV: id mode delay ttl heal latest expires until_done own nonce lost fingerprint retries limit
--   mode         skip or replace
--   delay ttl heal   ms until it is due, that it may wait after that, before it may heal
--   latest       ms after its first call that a burst may be delayed, or -1 for no bound
--   expires      ms after which the broker drops the message, or -1
--   until_done   1: refuse while it runs
--   own          1: called from the body of the running attempt, for its own message id
--   nonce lost   of this claim; of an earlier one whose reply was lost, or ''
--   fingerprint  of all arguments, '' where that does not matter
--   limit        attempts that may run at once
-- Returns: claimed|refreshed|replaced ticket delay
--          moved|waiting|running|kept remaining ticket holder (both of the holder)
-- A full server refuses it as a whole. O(1), but for those who run or wait in the line.


-- Nearly every call is one of two: the first of its unit, or a duplicate of one that waits. Both
-- are answered here; the general way below gives the same answers in twice the time.
if ARGV[2] == 'skip' and ARGV[13] == '0' then
  local clock, text = redis.call('TIME'), string.format
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  local seen = redis.call('HMGET', KEYS[1], 'v', 'wh', 'wu', 'ws', 'wg', 'wj', 'wi', 'x0u', 'x0k',
    'qu', 'nu', 'ku', 'zu', 'ou', 'yu', 'wt', 'x1u', 'x2u', 'x3u', 'p0u', 'y0u', 'tu')
  if not seen[1] then
    local ticket = text('%.0f', clock[1] * 1000000 + clock[2])
    local due = now + ARGV[3]
    local till, expires = due + ARGV[4], tonumber(ARGV[7])
    if expires >= 0 then till = math.min(till, math.max(now + expires, due)) end
    if till <= now then till = now + 1 end
    redis.call('HSET', KEYS[1], 'wt', ticket, 'wi', ARGV[1], 'ws', text('%.0f', now),
      'wd', text('%.0f', due), 'wu', text('%.0f', till), 'wh', text('%.0f', due + ARGV[5]),
      'we', ARGV[5], 'wg', ARGV[10], 'l', ticket, 'v', '1')
    redis.call('PEXPIRE', KEYS[1], text('%.0f', till - now))
    return 'claimed ' .. ticket .. ' ' .. ARGV[3]
  end
  local is_plain = seen[2] and now < tonumber(seen[2]) and now < tonumber(seen[3])
    and tonumber(seen[4]) <= now and (ARGV[11] == '' or ARGV[11] ~= seen[5])
  for index = 10, 22 do is_plain = is_plain and (index == 16 or not seen[index]) end
  if is_plain and seen[8] then
    local left = seen[8] - now
    is_plain = ARGV[8] == '0' and left > 0 and left <= tonumber(seen[9])
  end
  if is_plain then
    local counted = redis.pcall('HINCRBY', KEYS[1], 'wz', 1)
    if type(counted) == 'table' and counted.err
      and not string.find(counted.err, 'OOM', 1, true) then
      return counted
    end
    return 'waiting ' .. text('%.0f', seen[2] - now) .. ' ' .. seen[16] .. ' '
      .. (seen[6] or seen[7])
  end
end

-- prelude

local id, mode, nonce, lost, fingerprint = ARGV[1], ARGV[2], ARGV[10], ARGV[11], ARGV[12]
local delay, ttl, heal = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local latest, expires = tonumber(ARGV[6]), tonumber(ARGV[7])
local until_done, own, retries = ARGV[8] == '1', ARGV[9] == '1', tonumber(ARGV[13])

local waiting, kept = record.w, record.q
local slots = all('x')
local own_run = own and with('x', 'i', id)

local function refuse(status, part, name, free_at)
  if pruned or status == 'moved' then save(true) end
  -- counted for whoever asks why; a full server must still be able to say no
  local counted = redis.pcall('HINCRBY', KEY, name .. 'z', 1)
  if type(counted) == 'table' and counted.err and not string.find(counted.err, 'OOM', 1, true) then
    return counted
  end
  return answer(status, math.max(free_at - now, 0), part.t or 0, part.j or part.i or '')
end

if kept and not (own and kept.i == id) then return refuse('kept', kept, 'q', kept.u) end
if until_done and #slots >= tonumber(ARGV[14]) and not own_run then
  local first = slots[1]
  for _, name in ipairs(slots) do
    if record[name].u < record[first].u then first = name end
  end
  return refuse('running', record[first], first, record[first].u)
end

if waiting and lost ~= '' and waiting.g == lost then
  heal_now(waiting, math.min(waiting.h, now))  -- our own ghost: nobody else ever saw it
end

if waiting and mode == 'skip' then
  if now < waiting.h then return refuse('waiting', waiting, 'w', waiting.h) end
  waiting.h, waiting.e, waiting.c = now + waiting.e, waiting.e * 2, waiting.c + 1
  waiting.d = math.max(waiting.d, now)
  waiting.u = math.max(waiting.u, now + delay + ttl)
  waiting.j, waiting.g = id, nonce
  save(false)
  return answer('refreshed', waiting.t, delay)
end

if waiting then
  local since = waiting.s
  if latest >= 0 then delay = math.max(0, math.min(delay, since + latest - now)) end
  local same = fingerprint ~= '' and waiting.x == fingerprint and waiting.p == 1
  if same and now < waiting.h and now + delay >= waiting.d then
    waiting.d = now + delay
    waiting.u = math.max(waiting.u, waiting.d + ttl)
    return refuse('moved', waiting, 'w', waiting.d)
  end
end

local new = wait(id, retries, now + delay, ttl, heal)
new.g = nonce
if expires >= 0 then new.u = math.min(new.u, math.max(now + expires, new.d)) end
if mode == 'replace' then
  new.p = 1
  if latest >= 0 then new.q = (waiting and waiting.s or now) + latest end
  if fingerprint ~= '' then new.x = fingerprint end
end
if waiting then
  new.s, new.u = waiting.s, math.max(new.u, waiting.u)
end
record.w = new
save(false)
return answer(waiting and 'replaced' or 'claimed', new.t, delay)
