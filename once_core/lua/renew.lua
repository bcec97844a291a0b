-- renew: heartbeat of one running attempt.
-- KEYS: record
-- ARGV: id ticket retries attempt where lease fence held limit
--   lease held   ms; held: how long it runs so far
--   limit        attempts that may run at once
-- Returns: renewed | restored | lost
-- Opens with a command that a full server accepts: leases live on when nothing else does.

-- Nearly every renewal: the record is the running part of this attempt and nothing else. The
-- general way below does the same in four times the time.
local seen = redis.call('HMGET', KEYS[1], 'x0a', 'x0s', 'x0u', 'x0k', 'x0b', 'x0i', 'x0r', 'x0t',
  'x0f', 'x0z', 'l', 'v')
local fields = 0
for index = 1, 12 do if seen[index] then fields = fields + 1 end end
if seen[1] == ARGV[4] and redis.call('HLEN', KEYS[1]) == fields then
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  if now < tonumber(seen[3]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[6])
    redis.call('HSET', KEYS[1], 'x0u', string.format('%.0f', now + ARGV[6]), 'x0k', ARGV[6])
    return 'renewed'
  end
end

-- prelude

local id, ticket, retries = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local attempt, where = ARGV[4], ARGV[5]
local lease, fence, held = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])

local slot = with('x', 'a', attempt)
if slot then
  local running = record[slot]
  running.u, running.k = now + lease, lease
  save(true)
  return 'renewed'
end
if with('y', 'a', attempt) or record.y and record.y.a == attempt then return 'lost' end
if #all('x') >= tonumber(ARGV[9]) or with('x', 'i', id) then
  save(true)
  return 'lost'
end
record[unused('x')] = lease_of(attempt, where, id, retries, ticket, now - held, lease, fence)
last = math.max(last, fence)
drop_own(id, retries)
save(true)
return 'restored'
