-- leave: whoever is parked gives up, and frees the slot if it was given one meanwhile.
-- KEYS: record
-- ARGV: attempt
-- Returns: left

local place, slot = with('p', 'a', ARGV[1]), with('x', 'a', ARGV[1])
if place then record[place] = nil end
if slot then free(slot) end
save(true)
return 'left'
