-- renew: heartbeat of one running attempt.
-- KEYS: record
-- ARGV: id ticket retries attempt where lease fence held limit
--   lease held   ms; held: how long it runs so far
--   limit        attempts that may run at once
-- Returns: renewed | restored | lost
-- Opens with a command that a full server accepts: leases live on when nothing else does.

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
