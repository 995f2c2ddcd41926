-- Moves tasks whose time has come, by Redis's clock, into their lanes; says when to come again.
-- EDGE scheduled -> ready
-- EDGE retry -> ready
-- EDGE scheduled -> archived
-- EDGE retry -> archived
-- EDGE scheduled -> aggregating
-- EDGE retry -> aggregating
-- KEYS[1] high – stream, lane of high priority
-- KEYS[2] normal – stream
-- KEYS[3] low – stream
-- KEYS[4] index – hash, task id to lane letter and entry id
-- KEYS[5] parked – hash, task id to lane, crashes and message
-- KEYS[6] scheduled – sorted set, task id by due time in ms
-- KEYS[7] retry – sorted set, task id by due time in ms
-- KEYS[8] config – hash
-- KEYS[9] archived – sorted set, task id by the time in ms at which it was archived
-- KEYS[10] stats – hash, counters over all time
-- KEYS[11] aggregating – sorted set, members of all groups in order of arrival
-- KEYS[12] groups – sorted set, group by the time in ms at which it becomes a batch
-- KEYS[13] grouped – hash, task id to arrival, rule and group; or "=" and its batch
-- KEYS[14] cron_due – sorted set, cron entry id by its next tick in ms
-- ARGV[1] limit – most tasks to move from each of the two, at most 500
-- RETURNS {moved, orphans, next, paused, unreadable, batch, tick}: tasks moved; ids without a body, dropped; ms until the
--         next is due (0: more are due now, -1: none waits); 1 when the queue is paused, else 0; bodies that make no
--         sense, archived; ms until the next group becomes a batch, and until the next tick of a schedule (0: now, -1:
--         there is none)
-- COST about 12 us a task, 20 where it joins a group
local lanes = {h = KEYS[1], n = KEYS[2], l = KEYS[3]}
local index, parked, config, limit = KEYS[4], KEYS[5], KEYS[8], tonumber(ARGV[1])
local archived, stats = KEYS[9], KEYS[10]
local aggregating, groups, grouped, cron_due = KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local moved, orphans, unreadable, next_due = 0, 0, 0, -1

-- A task that was enqueued with a group joins it now, as one that arrives now: its body stays where it is.
local arrivals = 0
local function join_group(id, rule)
  local grace, delay, size, group = string.match(rule, '^(%d+),(%d+),(%d+),(.*)$')
  local arrival = string.format('%016.0f', now_us + arrivals)
  arrivals = arrivals + 1
  redis.call('ZADD', aggregating, 0, group .. '\0' .. arrival .. '\0' .. id)
  redis.call('HSET', grouped, id, arrival .. ' ' .. rule)
  local from, to, due = '[' .. group .. '\0', '(' .. group .. '\1', now + tonumber(grace)
  if tonumber(delay) > 0 then
    local oldest = redis.call('ZRANGEBYLEX', aggregating, from, to, 'LIMIT', 0, 1)[1]
    due = math.min(due, math.floor(tonumber(string.match(oldest, '%z(%d+)%z')) / 1000) + tonumber(delay))
  end
  if tonumber(size) > 0 and redis.call('ZLEXCOUNT', aggregating, from, to) >= tonumber(size) then due = now end
  redis.call('ZADD', groups, due, group)
end

for k = 6, 7 do
  local waiting = KEYS[k]
  local ids = redis.call('ZRANGEBYSCORE', waiting, '-inf', now, 'LIMIT', 0, limit)
  if #ids > 0 then
    -- After a write that needs no memory Redis lets the others pass when memory is full. Scheduled tasks alone may fill
    -- it, and room is made only by running them. No task has an empty id.
    redis.call('HDEL', parked, '')
    local values = redis.call('HMGET', parked, unpack(ids))
    local records = redis.call('EXISTS', grouped) == 1 and redis.call('HMGET', grouped, unpack(ids)) or {}
    local indexed, leaving, kept = {}, {}, {}
    for i, id in ipairs(ids) do
      local value = values[i]
      local colon = value and string.find(value, ':', 1, true)
      local home, crashes = string.match(value and string.sub(value, 1, colon or 0) or '', '^(%a)(%d+)')
      local rule = value and string.match(records[i] or '', '^%d+ (%d+,%d+,%d+,.*)$')
      if not rule then leaving[#leaving + 1] = id end
      if rule then
        join_group(id, rule)
        moved = moved + 1
      elseif home and lanes[home] then
        local message = string.sub(value, colon + 1)
        local entry
        if crashes == '0' then
          entry = redis.call('XADD', lanes[home], '*', 'id', id, 'm', message)
        else
          entry = redis.call('XADD', lanes[home], '*', 'id', id, 'm', message, 'c', crashes)
        end
        indexed[#indexed + 1] = id
        indexed[#indexed + 1] = home .. entry
        moved = moved + 1
      elseif value then
        kept[#kept + 1] = {id, value}
      else
        orphans = orphans + 1
        if records[i] then redis.call('HDEL', grouped, id) end
      end
    end
    redis.call('ZREM', waiting, unpack(ids))
    if #leaving > 0 then redis.call('HDEL', parked, unpack(leaving)) end
    if #indexed > 0 then redis.call('HSET', index, unpack(indexed)) end
    for _, body in ipairs(kept) do
      redis.call('ZADD', archived, now, body[1])
      redis.call('HSET', parked, body[1], 'n0' .. '!undecodable:' .. body[2])
    end
    unreadable = unreadable + #kept
  end
  local head = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
  if head[2] then
    local wait = math.max(0, head[2] - now)
    if next_due < 0 or wait < next_due then next_due = wait end
  end
end

local function until_first(set)
  local head = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
  return head[2] and math.max(0, head[2] - now) or -1
end

-- A counter at its end starts again rather than fail the script, which could not be rolled back.
local function count(field, by)
  if by > 0 and type(redis.pcall('HINCRBY', stats, field, by)) == 'table' then redis.pcall('HSET', stats, field, by) end
end
count('vanished', orphans)
count('quarantined', unreadable)
local paused = redis.call('HEXISTS', config, 'paused')
return {moved, orphans, next_due, paused, unreadable, until_first(groups), until_first(cron_due)}
