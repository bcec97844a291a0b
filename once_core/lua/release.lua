-- release: a person frees the unit of work.
-- KEYS: record
-- ARGV: holder
--   holder   message id that must be the one that runs, waits or keeps; '' frees whoever it is
-- Returns: released | free | other, holder
-- Messages that wait are not lost: they run without their ticket's protection. A live body
-- that is released loses its lease for good. Of several that run, '' frees all, and an id its own.

local slots = all('x')
local own = ARGV[1] ~= '' and with('x', 'i', ARGV[1])
local part = record[own or slots[1]] or record.w or record.q
if not part then return answer('free', '') end
local holder = part.j or part.i or ''
if ARGV[1] ~= '' and ARGV[1] ~= holder then
  -- others run; what waits or is kept under this id goes all the same
  local found = false
  for _, name in ipairs({ 'w', 'n', 'q' }) do
    local each = record[name]
    if each and (each.j or each.i) == ARGV[1] then record[name], found = nil, true end
  end
  if not found then return answer('other', holder) end
  if not record.w then record.w, record.n = record.n, nil end
  save(true)
  return answer('released', ARGV[1])
end
if not own or #slots == 1 then record.w, record.n, record.q = nil, nil, nil end
for _, name in ipairs(own and { own } or slots) do
  local running = record[name]
  record[record.y and unused('y') or 'y'] = { a = running.a, u = now + running.k }
  free(name)
end
save(true)
return answer('released', holder)
