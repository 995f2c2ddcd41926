-- Deletes finished tasks whose time is over or that are too many, with their bodies.
-- EDGE completed -> gone
-- EDGE archived -> gone
-- KEYS[1] parked – hash, task id to lane, crashes and message
-- KEYS[2] completed – sorted set, task id by the time in ms at which its retention ends
-- KEYS[3] archived – sorted set, task id by the time in ms at which it was archived
-- ARGV[1] age – ms after which an archived task is dropped
-- ARGV[2] size – most tasks the archive keeps; the oldest go first
-- ARGV[3] limit – most tasks to delete at each of the three steps, at most 500
-- RETURNS {purged, next}: tasks deleted; ms until the next retention ends (0: more are over now, -1: none is kept)
-- COST about 5 us a task
local parked, completed, archived = KEYS[1], KEYS[2], KEYS[3]
local age, size, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function drop(from, ids)
  if #ids > 0 then
    redis.call('ZREM', from, unpack(ids))
    redis.call('HDEL', parked, unpack(ids))
  end
  return #ids
end
local purged = drop(completed, redis.call('ZRANGEBYSCORE', completed, '-inf', now, 'LIMIT', 0, limit))
purged = purged + drop(archived, redis.call('ZRANGEBYSCORE', archived, '-inf', now - age, 'LIMIT', 0, limit))
local over = redis.call('ZCARD', archived) - size
if over > 0 then
  purged = purged + drop(archived, redis.call('ZRANGE', archived, 0, math.min(over, limit) - 1))
end
local head = redis.call('ZRANGE', completed, 0, 0, 'WITHSCORES')
return {purged, head[2] and math.max(0, head[2] - now) or -1}
