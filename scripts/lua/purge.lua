-- Deletes finished tasks whose time is over, with their bodies.
-- EDGE completed -> gone
-- EDGE archived -> gone
-- KEYS[1] parked – hash, task id to lane, crashes and message
-- KEYS[2] completed – sorted set, task id by the time in ms at which its retention ends
-- KEYS[3] archived – sorted set, task id by the time in ms at which it was archived
-- ARGV[1] age – ms after which an archived task is dropped
-- ARGV[2] limit – most tasks to delete of each of the two, at most 500
-- RETURNS {purged, next}: tasks deleted; ms until the next retention ends (0: more are over now, -1: none is kept)
-- COST about 5 us a task
local parked, completed, archived = KEYS[1], KEYS[2], KEYS[3]
local age, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function drop(from, until_ms)
  local ids = redis.call('ZRANGEBYSCORE', from, '-inf', until_ms, 'LIMIT', 0, limit)
  if #ids > 0 then
    redis.call('ZREM', from, unpack(ids))
    redis.call('HDEL', parked, unpack(ids))
  end
  return #ids
end
local purged = drop(completed, now) + drop(archived, now - age)
local head = redis.call('ZRANGE', completed, 0, 0, 'WITHSCORES')
return {purged, head[2] and math.max(0, head[2] - now) or -1}
