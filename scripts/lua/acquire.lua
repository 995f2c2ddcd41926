-- Takes a permit of a semaphore, unless as many are held as there are. A permit whose lease ran out is held no more.
-- EDGE none
-- KEYS[1] semaphore – sorted set, token of a holder by the time in ms at which its lease ends
-- ARGV[1] token – made up by the asker; asking again under it, after a lost reply, takes no second permit
-- ARGV[2] limit – permits that may be held at once
-- ARGV[3] lease – ms
-- RETURNS 0 when it is taken, else ms until the first of the leases held now ends
-- COST constant, and what leases that ran out cost to remove
local semaphore, token, limit, lease = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

redis.call('ZREMRANGEBYSCORE', semaphore, '-inf', now)
if redis.call('ZCARD', semaphore) >= limit and not redis.call('ZSCORE', semaphore, token) then
  local first = redis.call('ZRANGE', semaphore, 0, 0, 'WITHSCORES')
  return math.max(1, first[2] - now)
end
redis.call('ZADD', semaphore, now + lease, token)
local last = redis.call('ZRANGE', semaphore, -1, -1, 'WITHSCORES')
redis.call('PEXPIREAT', semaphore, last[2])
return 0
