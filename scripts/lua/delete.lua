-- Deletes one task that is not running, with everything kept of it.
-- EDGE ready -> gone
-- EDGE scheduled -> gone
-- EDGE aggregating -> gone
-- EDGE retry -> gone
-- EDGE completed -> gone
-- EDGE archived -> gone
-- KEYS[1] front – stream
-- KEYS[2] high – stream
-- KEYS[3] normal – stream
-- KEYS[4] low – stream
-- KEYS[5] index – hash, task id to lane letter and entry id
-- KEYS[6] parked – hash, task id to lane, crashes and message
-- KEYS[7] scheduled – sorted set, task id by due time in ms
-- KEYS[8] retry – sorted set
-- KEYS[9] completed – sorted set
-- KEYS[10] archived – sorted set
-- KEYS[11] unique – hash, dedup key to whose lock it is; "+" and the key to who waits behind a keep-last lock
-- KEYS[12] owners – hash, task id to dedup key
-- KEYS[13] aggregating – sorted set, members of all groups in order of arrival
-- KEYS[14] groups – sorted set, group by the time in ms at which it becomes a batch
-- KEYS[15] grouped – hash, task id to arrival, rule and group; or "=" and its batch
-- ARGV[1] task id
-- RETURNS a word: ok, missing, active (refused: a worker holds it), or batched: and the batch that it is part of (refused)
-- COST constant
local lanes = {f = KEYS[1], h = KEYS[2], n = KEYS[3], l = KEYS[4]}
local index, parked, unique, owners, id = KEYS[5], KEYS[6], KEYS[11], KEYS[12], ARGV[1]
local aggregating, groups, grouped = KEYS[13], KEYS[14], KEYS[15]

-- A lock ends with its task by itself, but for a window, which would stand to its end. The one that waits behind it has
-- it now, and may run.
local function free_lock()
  local key = redis.call('HGET', owners, id)
  if not key then return end
  local record, behind = redis.call('HGET', unique, key), redis.call('HGET', unique, '+' .. key)
  redis.call('HDEL', owners, id)
  local mode, wanted, other = string.match(behind or '', '^(%a)(%d+) (.+)$')
  if other == id then
    redis.call('HDEL', unique, '+' .. key)
  elseif record and string.match(record, '^%a%d+ (.+)$') == id then
    redis.call('HDEL', unique, key)
    if other then
      local time = redis.call('TIME')
      local now = time[1] * 1000 + math.floor(time[2] / 1000)
      redis.call('HDEL', unique, '+' .. key)
      redis.call('HSET', unique, key, mode .. '0 ' .. other)
      redis.call('ZADD', KEYS[7], 'XX', math.max(tonumber(wanted), now), other)
    end
  end
end

local place = redis.call('HGET', index, id)
if place then
  local lane, entry = lanes[string.sub(place, 1, 1)], string.sub(place, 2)
  local pending = redis.pcall('XPENDING', lane, 'w', entry, entry, 1)
  if not pending.err and #pending > 0 then return 'active' end
  redis.call('XDEL', lane, entry)
  redis.call('HDEL', index, id)
  free_lock()
  return 'ok'
end
local record = redis.call('HGET', grouped, id)
local batch = string.match(record or '', '^=(.*)$')
if batch and redis.call('HEXISTS', index, batch) + redis.call('HEXISTS', parked, batch) > 0 then
  return 'batched:' .. batch
end
free_lock()
if record then
  redis.call('HDEL', grouped, id)
  local arrival, group = string.match(record, '^(%d+) %d+,%d+,%d+,(.*)$')
  if group and redis.call('ZREM', aggregating, group .. '\0' .. arrival .. '\0' .. id) == 1 then
    local members = redis.call('ZLEXCOUNT', aggregating, '[' .. group .. '\0', '(' .. group .. '\1')
    if members == 0 then redis.call('ZREM', groups, group) end
  end
end
for k = 7, 10 do redis.call('ZREM', KEYS[k], id) end
if redis.call('HDEL', parked, id) == 1 then return 'ok' end
return 'missing'
