-- age: for tests, the record as it will be after a while.
-- KEYS: record
-- ARGV: by
--   by   ms that pass at once
-- Returns: aged | gone
-- Tickets and fences stay: they only ever grow.

local MOMENTS = { 'd', 'h', 'q', 's', 'u' }

local by = tonumber(ARGV[1])
for name, part in pairs(record) do
  for _, letter in ipairs(MOMENTS) do
    if part[letter] then part[letter] = part[letter] - by end
  end
end
prune()
save(true)
return answer(redis.call('EXISTS', KEY) == 1 and 'aged' or 'gone')
