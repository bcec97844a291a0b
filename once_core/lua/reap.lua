-- reap: the main process saw the child of this message die.
-- KEYS: record
-- ARGV: id attempt margin
--   attempt   of the lease that was seen; '' only asks who runs
--   margin    ms that the lease may live on (a live body renews it), 0: it ends now
-- Returns: reaped | not_yours, attempt where

local slot = ARGV[2] ~= '' and with('x', 'a', ARGV[2]) or with('x', 'i', ARGV[1])
local running = slot and record[slot]
if not running or running.i ~= ARGV[1] then return answer('not_yours', '', '') end
if ARGV[2] == '' or running.a ~= ARGV[2] then return answer('not_yours', running.a, running.b) end
local margin = tonumber(ARGV[3])
if margin > 0 then
  running.u = math.min(running.u, now + margin)
else
  free(slot)
end
save(true)
return answer('reaped', running.a, running.b)
