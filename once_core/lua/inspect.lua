-- inspect: what a person sees. Writes nothing.
-- KEYS: record
-- ARGV:
-- Returns: record now field value field value ...

local answer = { 'record', text(now) }
for name, part in pairs(record) do
  for letter, value in pairs(part) do
    answer[#answer + 1] = name .. letter
    answer[#answer + 1] = text(value)
  end
end
return answer
