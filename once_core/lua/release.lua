-- release: a person frees the unit of work.
-- KEYS: record
-- ARGV: holder
--   holder   message id that must be the one that runs, waits or keeps; '' frees whoever it is
-- Returns: released | free | other, holder
-- Messages that wait are not lost: they run without their ticket's protection. A live body
-- that is released loses its lease for good.

local running, waiting, kept = record.x0, record.w, record.q
local part = running or waiting or kept
if not part then return answer('free', '') end
local holder = part.j or part.i or ''
if ARGV[1] ~= '' and ARGV[1] ~= holder then return answer('other', holder) end
if running then record.y = { a = running.a, u = now + running.k } end
record.x0, record.w, record.n, record.q = nil, nil, nil, nil
save(true)
return answer('released', holder)
