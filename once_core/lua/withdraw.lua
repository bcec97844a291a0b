-- withdraw: the message will not run (publish failed, revoked, expired, dead-lettered).
-- KEYS: record
-- ARGV: id ticket retries
-- Returns: withdrawn | not_yours

local found = take_away(ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]))
save(true)
return found and 'withdrawn' or 'not_yours'
