-- Gives back the tokens of tasks that ended; for each, one of the tasks that wait for its limiter is ready again at once.
-- EDGE retry -> ready
-- KEYS[1] high – stream
-- KEYS[2] normal – stream
-- KEYS[3] low – stream
-- KEYS[4] index – hash, task id to lane letter and entry id
-- KEYS[5] parked – hash, task id to lane, crashes, reason and message
-- KEYS[6] retry – sorted set, task id by due time in ms
-- KEYS[7] limiters – sorted set, name of a limiter by the time in ms at which its keys are gone by themselves
-- KEYS[8...] limit – two per token: sorted set of tokens, and sorted set of the ids of tasks that wait by when they last
--         asked in ms
-- ARGV[1...] two per token: name of its limiter, token (empty: a place is free for another reason)
-- RETURNS {roused, waiting}: tasks that are ready again, tasks that may still wait for the same limiters
-- COST about 3 us a token and 10 us a task; at most 250 tokens a call, held by the caller
local lanes = {h = KEYS[1], n = KEYS[2], l = KEYS[3]}
local index, parked, retry, limiters = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local page, asking = 10, 5000

-- Only tasks that a limit has put back: one that failed waits for its own time.
local function rouse(id)
  if not redis.call('ZSCORE', retry, id) then return false end
  local value = redis.call('HGET', parked, id) or ''
  local home, crashes, at = string.match(value, '^(%a)(%d+)!limited:()')
  if not home or not lanes[home] then return false end
  local message, entry = string.sub(value, at), nil
  if crashes == '0' then
    entry = redis.call('XADD', lanes[home], '*', 'id', id, 'm', message)
  else
    entry = redis.call('XADD', lanes[home], '*', 'id', id, 'm', message, 'c', crashes)
  end
  redis.call('ZREM', retry, id)
  redis.call('HDEL', parked, id)
  redis.call('HSET', index, id, home .. entry)
  return true
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local roused, waits, idle = 0, 0, {}

-- The one that has not asked for longest. One that is not to be found is just being put back, or is asking;
-- when that was long ago, it does not wait any more.
local function rouse_one(turn)
  local waiting = redis.call('ZRANGE', turn, 0, page - 1, 'WITHSCORES')
  for k = 1, #waiting, 2 do
    local id = waiting[k]
    if rouse(id) then
      redis.call('ZREM', turn, id)
      roused = roused + 1
      waits = waits + redis.call('ZCARD', turn)
      return
    elseif now - waiting[k + 1] > asking then
      redis.call('ZREM', turn, id)
    end
  end
  idle[turn] = true
  waits = waits + redis.call('ZCARD', turn)
end

for i = 1, #ARGV, 2 do
  local name, token, key, turn = ARGV[i], ARGV[i + 1], KEYS[i + 7], KEYS[i + 8]
  local free = redis.call('ZREM', key, token) == 1 or token == ''
  if free and not idle[turn] then rouse_one(turn) end
  -- The last token and the last that waits take their limiter along.
  if redis.call('EXISTS', key, turn) == 0 then redis.call('ZREM', limiters, name) end
end
return {roused, waits}
