-- inspect: what a person sees. Writes nothing.
-- KEYS: record
-- ARGV:
-- Returns: record now field value field value ...

local answer = { 'record', text(now) }
for _, name in ipairs(PARTS) do
  for letter, value in pairs(record[name] or {}) do
    answer[#answer + 1] = name .. letter
    answer[#answer + 1] = text(value)
  end
end
return answer
