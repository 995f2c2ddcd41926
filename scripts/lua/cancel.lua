-- Cancels one task: at once where it waits; where a worker runs it, by a mark that this worker carries out.
-- EDGE ready -> archived
-- EDGE ready -> gone
-- EDGE ready -> retry
-- EDGE scheduled -> archived
-- EDGE scheduled -> gone
-- EDGE retry -> archived
-- EDGE retry -> gone
-- EDGE aggregating -> archived
-- EDGE aggregating -> gone
-- EDGE aggregating -> scheduled
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
-- KEYS[11] aggregating – sorted set, members of all groups in order of arrival
-- KEYS[12] groups – sorted set, group by the time in ms at which it becomes a batch
-- KEYS[13] grouped – hash, task id to arrival, rule and group; or "=" and its batch
-- KEYS[14] unique – hash, dedup key to whose lock it is; "+" and the key to who waits behind a keep-last lock
-- KEYS[15] owners – hash, task id to dedup key
-- KEYS[16] progress – hash, task id to what its handler said last
-- KEYS[17] cancels – hash, lane letter and entry id to mark
-- KEYS[18] stats – hash, counters over all time
-- KEYS[19] day – hash, counters of this UTC day
-- ARGV[1] id – of the task
-- ARGV[2] mark – what becomes of it: a to be archived, d deleted, r retried; then a delay in ms
-- ARGV[3] hints – channel
-- ARGV[4] done – channel prefix; the task id follows it
-- RETURNS a word: ok; asked (a worker runs it and is told); missing; finished (there is nothing to cancel); or batch: and the
--         id of the batch that the task is part of
-- COST constant
local lanes = {f = KEYS[1], h = KEYS[2], n = KEYS[3], l = KEYS[4]}
local index, parked, scheduled, retry, completed, archived =
  KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local aggregating, groups, grouped, unique, owners, progress, cancels, stats, day =
  KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15], KEYS[16], KEYS[17], KEYS[18], KEYS[19]
local id, hints, done = ARGV[1], ARGV[3], ARGV[4]
local verb, delay = string.match(ARGV[2], '^(%a)(%d+)$')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = now + tonumber(delay)
-- When a task is due that waits behind another one with its lock: not before that one has ended.
local NEVER = 9007199254740991

-- A counter at its end starts again rather than fail the script, which could not be rolled back.
local function count(field)
  for _, key in ipairs({stats, day}) do
    if type(redis.pcall('HINCRBY', key, field, 1)) == 'table' then redis.pcall('HSET', key, field, 1) end
  end
  redis.pcall('EXPIRE', day, 7776000)
end

local function holder_of(record) return record and string.match(record, '^%a%d+ (.+)$') end

-- The lock goes with the task, its window too; the one that waits behind it has it now, and may run.
local function free()
  local key = redis.call('HGET', owners, id)
  if not key then return end
  local queued = '+' .. key
  local record, behind = redis.call('HGET', unique, key), redis.call('HGET', unique, queued)
  -- An upper-case mode: an archived task keeps its lock.
  if verb == 'a' and holder_of(record) == id and string.find(record, '^%u') then return end
  redis.call('HDEL', owners, id)
  if holder_of(behind) == id then
    redis.call('HDEL', unique, queued)
  elseif holder_of(record) == id then
    redis.call('HDEL', unique, key)
    if behind then
      local mode, wanted, other = string.match(behind, '^(%a)(%d+) (.+)$')
      redis.call('HDEL', unique, queued)
      redis.call('HSET', unique, key, mode .. '0 ' .. other)
      redis.call('ZADD', scheduled, 'XX', math.max(tonumber(wanted), now), other)
      redis.pcall('PUBLISH', hints, 'due')
    end
  end
end

-- A window outlasts the task's end; not when it is cancelled.
local function end_window()
  local key = redis.call('HGET', owners, id)
  local record = key and redis.call('HGET', unique, key)
  if holder_of(record) == id then
    redis.call('HSET', unique, key, string.sub(record, 1, 1) .. '0 ' .. id)
  end
end

local function leave_group(record)
  redis.call('HDEL', grouped, id)
  local arrival, group = string.match(record, '^(%d+) %d+,%d+,%d+,(.*)$')
  if not group or arrival == '0' then return end
  redis.call('ZREM', aggregating, group .. '\0' .. arrival .. '\0' .. id)
  if redis.call('ZLEXCOUNT', aggregating, '[' .. group .. '\0', '(' .. group .. '\1') == 0 then
    redis.call('ZREM', groups, group)
  end
end

local function forget()
  redis.call('HDEL', parked, id)
  redis.call('HDEL', progress, id)
  free()
  redis.pcall('PUBLISH', done .. id, 'deleted')
end

-- What becomes of a task that was taken out of where it waited.
local function finish(home, crashes, message)
  count('cancelled')
  if verb == 'd' then
    forget()
  elseif verb == 'a' then
    redis.call('ZADD', archived, now, id)
    redis.call('HSET', parked, id, home .. crashes .. '!cancelled:' .. message)
    free()
    count('archived')
    redis.pcall('PUBLISH', done .. id, 'archived')
  else
    redis.call('ZADD', retry, due, id)
    redis.call('HSET', parked, id, home .. crashes .. ':' .. message)
    redis.pcall('PUBLISH', hints, 'due')
  end
  return 'ok'
end

-- 1. In a lane: ready, or active.
local place = redis.call('HGET', index, id)
if place then
  local letter, entry = string.sub(place, 1, 1), string.sub(place, 2)
  local lane = lanes[letter]
  local found = redis.call('XRANGE', lane, entry, entry)[1]
  if not found then return 'missing' end
  local pending = redis.pcall('XPENDING', lane, 'w', entry, entry, 1)
  if not pending.err and #pending > 0 then
    -- After a write that needs no memory Redis lets the others pass when memory is full.
    redis.call('HDEL', cancels, place)
    redis.call('HSET', cancels, place, ARGV[2])
    if verb ~= 'r' then end_window() end
    redis.pcall('PUBLISH', hints, 'cancel ' .. place)
    return 'asked'
  end
  local f = {}
  for k = 1, #found[2], 2 do f[found[2][k]] = found[2][k + 1] end
  redis.call('XDEL', lane, entry)
  redis.call('HDEL', index, id)
  return finish(f.l or letter, f.c or '0', f.m or '')
end

-- 2. In a batch: that one is the task.
local record = redis.call('HGET', grouped, id)
if record and string.sub(record, 1, 1) == '=' then
  local batch = string.sub(record, 2)
  if redis.call('HEXISTS', index, batch) == 1 or redis.call('ZSCORE', retry, batch) then return 'batch:' .. batch end
  if redis.call('ZSCORE', archived, batch) or redis.call('ZSCORE', completed, batch) then return 'finished' end
  return 'missing'
end

-- 3. Parked: finished, or waiting for its time or its group.
local value = redis.call('HGET', parked, id)
if not value then return 'missing' end
if redis.call('ZSCORE', completed, id) then return 'finished' end
if redis.call('ZSCORE', archived, id) then
  if verb ~= 'd' then return 'finished' end
  redis.call('ZREM', archived, id)
  forget()
  return 'ok'
end
local score, again = redis.call('ZSCORE', scheduled, id), redis.call('ZSCORE', retry, id)
if verb == 'r' and (score or again or record) then
  if again then
    redis.call('ZADD', retry, due, id)
    -- One that a limit had put back waits for its time now: no free place rouses it before.
    local home, at = string.match(value, '^(%a%d+)!limited:()')
    if home then redis.call('HSET', parked, id, home .. ':' .. string.sub(value, at)) end
  elseif not score then
    -- It joins its group again when its time has come.
    leave_group(record)
    redis.call('HSET', grouped, id, '0 ' .. string.match(record, '^%d+ (.*)$'))
    redis.call('ZADD', scheduled, due, id)
  elseif tonumber(score) < NEVER then
    redis.call('ZADD', scheduled, due, id)
  end
  count('cancelled')
  redis.pcall('PUBLISH', hints, 'due')
  return 'ok'
end
if not (score or again or record) then return 'missing' end
redis.call('ZREM', scheduled, id)
redis.call('ZREM', retry, id)
if record then leave_group(record) end
local colon = string.find(value, ':', 1, true) or 0
local home, crashes = string.match(string.sub(value, 1, colon), '^(%a)(%d+)')
return finish(home or 'n', crashes or '0', string.sub(value, colon + 1))
