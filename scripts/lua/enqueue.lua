-- Stores new tasks that nothing has to be checked for, each ready or scheduled, exactly once per producer sequence.
-- EDGE new -> ready
-- EDGE new -> scheduled
-- KEYS[1] high – stream, lane of high priority
-- KEYS[2] normal – stream
-- KEYS[3] low – stream
-- KEYS[4] index – hash, task id to lane letter and entry id
-- KEYS[5] parked – hash, task id to lane, crashes and message
-- KEYS[6] scheduled – sorted set, task id by due time in ms
-- KEYS[7] config – hash
-- KEYS[8] producers – hash, producer id to "sequence ms first-task-id words"; has the field "limits" where the queue has some
-- ARGV[1] producer – id of the sending client
-- ARGV[2] sequence – 1, 2, 3 ... of this producer in this queue
-- ARGV[3] hints – channel
-- ARGV[4...] runs of tasks that share one how: how, count, then so many task ids, then so many messages.
--            how = lane letter (h n l), "-", then nothing, "D" and a delay in ms, or "A" and a time in ms
-- RETURNS {queue, words}: queue = "new" or "known" (whether the registry must be told); words = one per task,
--         separated by spaces: ready, scheduled; or one for all, when all are the same. {limited}: the queue has limits,
--         nothing was stored, send it to enqueue_checked. Error SEQUENCE: this sequence is known for a different batch.
-- COST about 5 us a task; at most 500 tasks and 1 MB a call, held by the caller
local producer, sequence, hints = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local lanes = {h = KEYS[1], n = KEYS[2], l = KEYS[3]}
local index, parked, scheduled, config, producers = KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]

-- A re-send gets the first reply again and adds nothing.
local seen = redis.call('HMGET', producers, producer, 'limits')
local last = seen[1]
if last then
  local known, first, words = string.match(last, '^(%d+) %d+ (%S+) (.*)$')
  if tonumber(known) == sequence and first == ARGV[6] then return {'known', words} end
  if tonumber(known) >= sequence then
    return redis.error_reply('SEQUENCE ' .. sequence .. ' is known for another batch')
  end
end
if seen[2] then return {'limited'} end

local words, indexed, earliest, uniform, now = {}, {}, nil, true, nil

local function server_time()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function store(lane, stream, due, id, message)
  if due > 0 and due > now then
    redis.call('ZADD', scheduled, due, id)
    redis.call('HSET', parked, id, lane .. '0:' .. message)
    if not earliest or due < earliest then earliest = due end
    return 'scheduled'
  end
  indexed[#indexed + 1] = id
  indexed[#indexed + 1] = lane .. redis.call('XADD', stream, '*', 'id', id, 'm', message)
  return 'ready'
end

local at = 4
while at < #ARGV do
  local how, count, due = ARGV[at], tonumber(ARGV[at + 1]), 0
  local lane = string.sub(how, 1, 1)
  if #how > 2 then
    now = now or server_time()
    due = tonumber(string.sub(how, 4))
    if string.sub(how, 3, 3) == 'D' then due = now + due end
  end
  for i = at + 2, at + 1 + count do
    local word = store(lane, lanes[lane], due, ARGV[i], ARGV[i + count])
    words[#words + 1] = word
    if word ~= words[1] then uniform = false end
  end
  at = at + 2 + 2 * count
end
if #indexed > 0 then redis.call('HSET', index, unpack(indexed)) end

local reply = uniform and words[1] or table.concat(words, ' ')
-- Mostly nothing needed the time so far, and an entry id begins with it.
local when = now or string.match(indexed[2], '%d+')
redis.call('HSET', producers, producer, ARGV[2] .. ' ' .. when .. ' ' .. ARGV[6] .. ' ' .. reply)
if earliest then
  -- Forwarders sleep until the next due time they know of; a user without rights to the channel only wakes them later.
  local head = redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')
  if tonumber(head[2]) == earliest then redis.pcall('PUBLISH', hints, 'due') end
end
-- Where this producer was known, the queue has not been removed since its last call.
if not last and redis.call('HSETNX', config, 'created', when) == 1 then return {'new', reply} end
return {'known', reply}
