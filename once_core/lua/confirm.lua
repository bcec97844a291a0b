-- confirm: a replacing message was published; only now are the older ones dead.
-- KEYS: record
-- ARGV: ticket ttl
-- Returns: confirmed

replace_below(tonumber(ARGV[1]), tonumber(ARGV[2]))
save(true)
return 'confirmed'
