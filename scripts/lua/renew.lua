-- Begins the lease of a held permit anew. One that ran out and that nobody took meanwhile is held again.
-- EDGE none
-- KEYS[1] semaphore – sorted set, token of a holder by the time in ms at which its lease ends
-- ARGV[1] token – of the holder
-- ARGV[2] lease – ms
-- RETURNS 1 when it is held, 0 when it is lost
-- COST constant
local semaphore, token, lease = KEYS[1], ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if not redis.call('ZSCORE', semaphore, token) then return 0 end
redis.call('ZADD', semaphore, now + lease, token)
local last = redis.call('ZRANGE', semaphore, -1, -1, 'WITHSCORES')
redis.call('PEXPIREAT', semaphore, last[2])
return 1
