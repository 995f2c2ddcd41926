-- Frees what stood beside tasks that have ended: locks, progress, marks, places in batches; wakes who waited behind a lock.
-- EDGE scheduled -> ready
-- EDGE scheduled -> gone
-- EDGE ready -> gone
-- EDGE retry -> gone
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
-- KEYS[11] grouped – hash, task id to arrival, rule and group; or "=" and its batch
-- KEYS[12] unique – hash, dedup key to whose lock it is; "+" and the key to who waits behind a keep-last lock
-- KEYS[13] owners – hash, task id to dedup key
-- KEYS[14] cancels – hash, lane letter and entry id to the outcome with which it is to be cancelled
-- KEYS[15] progress – hash, task id to what its handler said last
-- ARGV[1] hints – channel
-- ARGV[2] count – of task ids
-- ARGV[3...] so many task ids, whatever their state: what is not over is left alone. Then marks: lane letter and entry id
-- RETURNS {freed, woken, outdated}: locks freed; tasks that waited behind one and have it now; tasks dropped because the
--         newest with their lock waited behind them while they were to be tried again
-- COST about 4 us a task, 15 where one waits behind it; at most 500 ids and 500 marks a call, held by the caller
local lanes = {f = KEYS[1], h = KEYS[2], n = KEYS[3], l = KEYS[4]}
local index, parked, scheduled, retry, completed, archived =
  KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local grouped, unique, owners, cancels, progress = KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15]
local hints, count = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local freed, woken, outdated = 0, 0, 0
-- What was read at the beginning, by dedup key and by task id; kept right where a lock changes hands.
local records, places = {}, {}

-- Where a task is: waiting, active, batched, completed, archived; nil for one that is over, and what it was grouped as.
local function state_of(id, place, group)
  if place then
    local lane, entry = string.sub(place, 1, 1), string.sub(place, 2)
    if #redis.call('XRANGE', lanes[lane], entry, entry) == 0 then return nil end
    local pending = redis.pcall('XPENDING', lanes[lane], 'w', entry, entry, 1)
    return (pending.err or #pending == 0) and 'waiting' or 'active'
  end
  if group and string.sub(group, 1, 1) == '=' then
    local batch = string.sub(group, 2)
    if redis.call('HEXISTS', index, batch) == 1 or redis.call('ZSCORE', retry, batch) then return 'batched' end
    if redis.call('ZSCORE', archived, batch) then return 'archived' end
    if redis.call('ZSCORE', completed, batch) then return 'completed' end
    return nil, group
  end
  if redis.call('HEXISTS', parked, id) == 0 then return nil, group end
  if group or redis.call('ZSCORE', scheduled, id) or redis.call('ZSCORE', retry, id) then return 'waiting' end
  if redis.call('ZSCORE', completed, id) then return 'completed' end
  return redis.call('ZSCORE', archived, id) and 'archived' or nil
end

local function state_now(id)
  return state_of(id, redis.call('HGET', index, id), redis.call('HGET', grouped, id))
end

-- A task that is to be tried again, though a newer one with its lock waits.
local function drop(id, place)
  if place then
    local lane, entry = string.sub(place, 1, 1), string.sub(place, 2)
    redis.call('XDEL', lanes[lane], entry)
    redis.call('HDEL', index, id)
  end
  redis.call('HDEL', parked, id)
  redis.call('HDEL', progress, id)
  for _, set in ipairs({scheduled, retry}) do redis.call('ZREM', set, id) end
  outdated = outdated + 1
end

-- Gives the lock to the task that waited behind it, which is ready now or due when it was enqueued for.
local function wake(key, mode, due, id)
  local value = redis.call('HGET', parked, id)
  local home, message = string.match(value, '^(%a)%d+:(.*)$')
  redis.call('HDEL', unique, '+' .. key)
  records[key] = mode .. '0 ' .. id
  redis.call('HSET', unique, key, records[key])
  if tonumber(due) > now then
    redis.call('ZADD', scheduled, due, id)
    redis.pcall('PUBLISH', hints, 'due')
  else
    redis.call('ZREM', scheduled, id)
    redis.call('HDEL', parked, id)
    places[id] = home .. redis.call('XADD', lanes[home], '*', 'id', id, 'm', message)
    redis.call('HSET', index, id, places[id])
  end
  woken = woken + 1
end

local function holder_of(record) return record and string.match(record, '^%a%d+ (.+)$') end

-- Whether the lock has gone to the one that waited behind its holder.
local function passed_on(key, holder, state, place)
  local behind = redis.call('HGET', unique, '+' .. key)
  if not behind or state == 'active' then return false end
  local mode, due, id = string.match(behind, '^(%a)(%d+) (.+)$')
  if state_now(id) ~= 'waiting' then
    redis.call('HDEL', unique, '+' .. key)
    return false
  end
  if holder then
    if state == 'waiting' then drop(holder, place) end
    redis.call('HDEL', owners, holder)
  end
  wake(key, mode, due, id)
  return true
end

local ids, keys, groups = {}, {}, {}
if count > 0 then
  ids = {unpack(ARGV, 3, 2 + count)}
  keys = redis.call('HMGET', owners, unpack(ids))
  for i, place in ipairs(redis.call('HMGET', index, unpack(ids))) do places[ids[i]] = place end
  groups = redis.call('HMGET', grouped, unpack(ids))
end
local asked = {}
for _, key in ipairs(keys) do
  if key then asked[#asked + 1] = key end
end
if #asked > 0 then
  for i, record in ipairs(redis.call('HMGET', unique, unpack(asked))) do records[asked[i]] = record end
end

local over, unowned, unlocked = {}, {}, {}
for i, id in ipairs(ids) do
  local key, place = keys[i], places[id]
  local state, group = state_of(id, place, groups[i])
  local record = key and records[key]
  local mode, ends, holder = string.match(record or '', '^(%a)(%d+) (.+)$')
  if key and holder ~= id then
    -- It waits behind the lock, or lost it to another task.
    local waits = holder_of(redis.call('HGET', unique, '+' .. key)) == id
    if waits and state == 'waiting' then
      passed_on(key, holder, holder and state_now(holder),
        holder and redis.call('HGET', index, holder))
    else
      unowned[#unowned + 1] = id
      if waits then unlocked[#unlocked + 1] = '+' .. key end
    end
  elseif key and not (string.lower(mode) == 'k' and passed_on(key, id, state, place)) then
    local ended = not state or state == 'completed' or (state == 'archived' and string.lower(mode) == mode)
    if ended and tonumber(ends) <= now then
      unowned[#unowned + 1] = id
      unlocked[#unlocked + 1] = key
      freed = freed + 1
    end
  end
  if not state and group then redis.call('HDEL', grouped, id) end
  if not state or state == 'completed' then over[#over + 1] = id end
end
if #over > 0 then redis.call('HDEL', progress, unpack(over)) end
if #unowned > 0 then redis.call('HDEL', owners, unpack(unowned)) end
if #unlocked > 0 then redis.call('HDEL', unique, unpack(unlocked)) end

for i = 3 + count, #ARGV do
  local mark = ARGV[i]
  local lane, entry = string.sub(mark, 1, 1), string.sub(mark, 2)
  if #redis.call('XRANGE', lanes[lane], entry, entry) == 0 then redis.call('HDEL', cancels, mark) end
end
return {freed, woken, outdated}
