-- Removes the consumer of a worker that left, unless it still owns entries: those would be lost with it.
-- EDGE none
-- KEYS[1] lane – stream
-- ARGV[1] consumer
-- RETURNS a word: ok, missing, busy (owns entries; recover comes first)
-- COST constant
local pending = redis.pcall('XPENDING', KEYS[1], 'w', '-', '+', 1, ARGV[1])
if pending.err then return 'missing' end
if #pending > 0 then return 'busy' end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], 'w', ARGV[1])
return 'ok'
