-- renew: heartbeat of one running attempt.
-- KEYS: record
-- ARGV: id ticket retries attempt where lease fence held
--   lease held   ms; held: how long it runs so far
-- Returns: renewed | restored | lost
-- Opens with a command that a full server accepts: leases live on when nothing else does.

local id, ticket, retries = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local attempt, where = ARGV[4], ARGV[5]
local lease, fence, held = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])

local running, released = record.x0, record.y
if released and released.a == attempt then return 'lost' end
if running and running.a ~= attempt then
  save(true)
  return 'lost'
end
if running then
  running.u, running.k = now + lease, lease
  save(true)
  return 'renewed'
end
record.x0 = {
  a = attempt, b = where, i = id, r = retries, t = ticket, s = now - held, u = now + lease,
  k = lease, f = fence,
}
last = math.max(last, fence)
drop_own(id, retries)
save(true)
return 'restored'
