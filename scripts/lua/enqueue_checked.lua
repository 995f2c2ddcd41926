-- Stores new tasks that something is checked for: ids of the caller's choice, locks, groups, ticks, limits of the queue.
-- EDGE new -> ready
-- EDGE new -> scheduled
-- EDGE new -> aggregating
-- EDGE ready -> gone
-- EDGE scheduled -> gone
-- EDGE retry -> gone
-- EDGE aggregating -> gone
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
-- KEYS[11] aggregating – sorted set, members of all groups in order of arrival
-- KEYS[12] groups – sorted set, group by the time in ms at which it becomes a batch
-- KEYS[13] grouped – hash, task id to arrival, rule and group; or "=" and its batch
-- KEYS[14] unique – hash, dedup key to whose lock it is; "+" and the key to who waits behind a keep-last lock
-- KEYS[15] owners – hash, task id to dedup key
-- KEYS[16] progress – hash, task id to what its handler said last
-- KEYS[17] rates – hash, "q" or producer id to when its rate is used up, in us
-- KEYS[18] cron_due – sorted set, cron entry id by its next tick in ms
-- KEYS[19] ticks – list, the last ticks that fired
-- KEYS[20] config – hash
-- KEYS[21] producers – hash, producer id to "sequence ms first-task-id words"
-- ARGV[1] producer – id of the sending client
-- ARGV[2] sequence – 1, 2, 3 ... of this producer in this queue
-- ARGV[3] hints – channel
-- ARGV[4...] runs of tasks that share one how: how, count, then so many task ids, then so many messages.
--            how = lane letter (h n l), conflict letter (- or + an id that StreamQ made, x refuse, r return the existing,
--            p replace a finished one), "D" and a delay in ms or "A" and a time in ms or nothing; then parts, each after
--            a tab: "u", mode letter, conflict letter (x r p) and window in ms; "g" and "grace ms,longest delay ms,most
--            members,group"; "c" and "expected ms,next ms or 0,cron entry id" (expected 0: beside the schedule).
--            Mode letters: s until it starts, d until it is done, w window, b debounce, k keep the last; upper case: an
--            archived task keeps its lock. A task with a lock has its dedup key after its id and a space
-- RETURNS {queue, words, limited}: queue = "new" or "known"; words = one per task, separated by spaces, or one for all:
--         ready, scheduled, aggregating; exists, conflict (its id is taken); duplicate:id, existing:id (that task holds
--         the lock; refused, or to be returned), merged:id (it got the message); full, type, large, rate:ms (a limit
--         refused it); stale (the tick has fired already); limited = 1 when the queue has limits.
--         Error SEQUENCE: this sequence is known for a different batch.
-- COST about 7 us a task with a lock, 20 where it meets another or joins a group; at most 500 tasks and 1 MB a call, held
--      by the caller
local producer, sequence, hints = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local lanes = {f = KEYS[1], h = KEYS[2], n = KEYS[3], l = KEYS[4]}
local index, parked, scheduled, retry, completed, archived =
  KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local aggregating, groups, grouped, unique, owners, progress =
  KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15], KEYS[16]
local rates, cron_due, ticks, config, producers = KEYS[17], KEYS[18], KEYS[19], KEYS[20], KEYS[21]

-- A re-send gets the first reply again and adds nothing.
local last = redis.call('HGET', producers, producer)
local first_id = string.match(ARGV[6], '^%S+')
if last then
  local known, first, words = string.match(last, '^(%d+) %d+ (%S+) (.*)$')
  if tonumber(known) == sequence and first == first_id then
    return {'known', words, redis.call('HEXISTS', config, 'limits')}
  end
  if tonumber(known) >= sequence then
    return redis.error_reply('SEQUENCE ' .. sequence .. ' is known for another batch')
  end
end

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
-- When a task is due that waits behind another one with its lock: not before that one has ended.
local NEVER = 9007199254740991

-- Reading the call

local function parse_how(text)
  local head = string.match(text, '^[^\t]*')
  local how = {lane = string.sub(head, 1, 1), conflict = string.sub(head, 2, 2), due = 0}
  if how.conflict == '-' or how.conflict == '+' then how.conflict = nil end
  if #head > 2 then
    how.due = tonumber(string.sub(head, 4))
    if string.sub(head, 3, 3) == 'D' then how.due = how.due + now end
  end
  for letter, body in string.gmatch(text, '\t(.)([^\t]*)') do
    if letter == 'u' then
      how.mode, how.on_lock, how.window = string.match(body, '^(%a)(%a)(%d+)$')
      how.kind = string.lower(how.mode)
    elseif letter == 'g' then
      how.rule = body
    elseif letter == 'c' then
      how.expected, how.next, how.cron = string.match(body, '^(%d+),(%d+),(.*)$')
    end
  end
  return how
end

-- Ids and dedup keys by the place of the id in ARGV; the records of all locks, and which ids of the caller's choice something
-- is known of, are read at once.
local runs, ids, keys, wanted, chosen = {}, {}, {}, {}, {}
local at = 4
while at < #ARGV do
  local run = {how = parse_how(ARGV[at]), from = at + 2, count = tonumber(ARGV[at + 1])}
  for i = run.from, run.from + run.count - 1 do
    if run.how.mode then
      ids[i], keys[i] = string.match(ARGV[i], '^(%S+) (%S+)$')
      wanted[#wanted + 1] = keys[i]
    else
      ids[i] = ARGV[i]
    end
    if run.how.conflict then chosen[#chosen + 1] = ids[i] end
  end
  runs[#runs + 1] = run
  at = run.from + 2 * run.count
end

local lock_of, known = {}, {}
if #wanted > 0 then
  local records = redis.call('HMGET', unique, unpack(wanted))
  for i, key in ipairs(wanted) do lock_of[key] = records[i] end
end
if #chosen > 0 then
  for _, hash in ipairs({index, grouped, owners}) do
    local records = redis.call('HMGET', hash, unpack(chosen))
    for i, id in ipairs(chosen) do known[id] = known[id] or records[i] end
  end
end

-- Tasks that nothing stood in the way of are noted here, and their records written together: at the end, or before
-- anything looks at what is stored.

local indexed, locked, owned = {}, {}, {}

local function write_out()
  if #indexed > 0 then redis.call('HSET', index, unpack(indexed)) end
  if #locked > 0 then
    redis.call('HSET', unique, unpack(locked))
    redis.call('HSET', owners, unpack(owned))
  end
  indexed, locked, owned = {}, {}, {}
end

local function lock(key)
  if lock_of[key] == nil then lock_of[key] = redis.call('HGET', unique, key) end
  return lock_of[key]
end

local function set_lock(key, record)
  lock_of[key] = record
  if record then redis.call('HSET', unique, key, record) else redis.call('HDEL', unique, key) end
end

-- Tasks and their places

-- Where a task is: waiting, active, batched, completed, archived; or nil, and whether something points nowhere.
local function state_at(place)
  local lane, entry = string.sub(place, 1, 1), string.sub(place, 2)
  if #redis.call('XRANGE', lanes[lane], entry, entry) == 0 then return nil, true end
  local pending = redis.pcall('XPENDING', lanes[lane], 'w', entry, entry, 1)
  return (pending.err or #pending == 0) and 'waiting' or 'active'
end

local function state_of(id)
  local place = redis.call('HGET', index, id)
  if place then return state_at(place) end
  local group = redis.call('HGET', grouped, id)
  if group and string.sub(group, 1, 1) == '=' then
    local batch = string.sub(group, 2)
    local there = redis.call('HGET', index, batch)
    -- One that is in a batch has started when that one has.
    if there then return state_at(there) == 'active' and 'active' or 'batched' end
    if redis.call('ZSCORE', retry, batch) then return 'batched' end
    if redis.call('ZSCORE', archived, batch) then return 'archived' end
    if redis.call('ZSCORE', completed, batch) then return 'completed' end
    return nil, true
  end
  if redis.call('HEXISTS', parked, id) == 0 then return nil, group end
  if group or redis.call('ZSCORE', scheduled, id) or redis.call('ZSCORE', retry, id) then return 'waiting' end
  if redis.call('ZSCORE', completed, id) then return 'completed' end
  if redis.call('ZSCORE', archived, id) then return 'archived' end
  return nil, true
end

local function leave_group(id)
  local record = redis.call('HGET', grouped, id)
  if not record then return end
  redis.call('HDEL', grouped, id)
  local arrival, group = string.match(record, '^(%d+) %d+,%d+,%d+,(.*)$')
  if not group or arrival == '0' then return end
  redis.call('ZREM', aggregating, group .. '\0' .. arrival .. '\0' .. id)
  if redis.call('ZLEXCOUNT', aggregating, '[' .. group .. '\0', '(' .. group .. '\1') == 0 then
    redis.call('ZREM', groups, group)
  end
end

-- Takes a task that is not active out of wherever it is, and whatever else is left of it.
local function remove(id)
  local place = redis.call('HGET', index, id)
  if place then
    local lane, entry = string.sub(place, 1, 1), string.sub(place, 2)
    redis.call('XDEL', lanes[lane], entry)
    redis.call('HDEL', index, id)
  end
  redis.call('HDEL', parked, id)
  redis.call('HDEL', progress, id)
  for _, set in ipairs({scheduled, retry, completed, archived}) do redis.call('ZREM', set, id) end
  leave_group(id)
end

local arrivals, next_due, next_batch, former_batch = 0, nil, nil, nil

local function join_group(id, rule)
  local grace, delay, size, group = string.match(rule, '^(%d+),(%d+),(%d+),(.*)$')
  local arrival = string.format('%016.0f', now_us + arrivals)
  if arrivals == 0 then former_batch = tonumber(redis.call('ZRANGE', groups, 0, 0, 'WITHSCORES')[2]) end
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
  if not next_batch or due < next_batch then next_batch = due end
end

local function place(how, id, message, due, lane)
  if due > now then
    redis.call('ZADD', scheduled, due, id)
    redis.call('HSET', parked, id, how.lane .. '0:' .. message)
    if how.rule then redis.call('HSET', grouped, id, '0 ' .. how.rule) end
    if not next_due or due < next_due then next_due = due end
    return 'scheduled'
  end
  if how.rule then
    redis.call('HSET', parked, id, how.lane .. '0:' .. message)
    join_group(id, how.rule)
    return 'aggregating'
  end
  local entry
  if lane == 'f' then
    entry = redis.call('XADD', lanes[lane], '*', 'id', id, 'm', message, 'l', how.lane)
  else
    entry = redis.call('XADD', lanes[lane], '*', 'id', id, 'm', message)
  end
  indexed[#indexed + 1] = id
  indexed[#indexed + 1] = lane .. entry
  return 'ready'
end

-- Ids of the caller's choice

-- What such an id meets: a word that refuses it, or whether something is to be cleared away first. What points nowhere
-- is no task.
local function id_met(conflict, id)
  local state, remains = state_of(id)
  if not state then return nil, remains end
  if conflict == 'p' and (state == 'completed' or state == 'archived') then return nil, true end
  return conflict == 'r' and 'exists' or 'conflict'
end

-- Locks

local function holder_of(record) return string.match(record, '^%a%d+ (.+)$') end

-- Takes a task's lock from it.
local function free(id)
  local key = redis.call('HGET', owners, id)
  if not key then return end
  redis.call('HDEL', owners, id)
  for _, name in ipairs({key, '+' .. key}) do
    local record = lock(name)
    if record and holder_of(record) == id then set_lock(name, false) end
  end
end

-- How the record of a lock begins that is taken now.
local function claim(how)
  local ends = how.kind == 'w' and math.max(now, how.due) + tonumber(how.window) or 0
  return how.mode .. string.format('%.0f', ends) .. ' '
end

local function own(how, id, key)
  local record = lock(key)
  local former = record and holder_of(record)
  if former and former ~= id and redis.call('HGET', owners, former) == key then redis.call('HDEL', owners, former) end
  set_lock(key, claim(how) .. id)
  redis.call('HSET', owners, id, key)
end

-- What the lock means for a new task: nothing, or a word and the holder; and a task that the newcomer outlives.
-- Words: duplicate, existing, merged; replace (the holder waits, and makes way); behind (the new one waits for it).
-- A lock is its task: it stands while that one lives, and no longer.
local function met(how, id, key)
  local record = lock(key)
  if not record then return nil end
  local mode, ends, holder = string.match(record, '^(%a)(%d+) (.+)$')
  local kind = string.lower(mode)
  local refusal = how.on_lock == 'r' and 'existing' or 'duplicate'
  local state = state_of(holder)
  if kind == 'k' and state ~= 'active' and lock('+' .. key) then
    -- The running one has ended, or waits to be tried again: the newest wins over it.
    local behind = holder_of(lock('+' .. key))
    if state_of(behind) == 'waiting' then
      if how.kind == 'k' then return 'merged', behind, holder end
      return refusal, behind
    end
  end
  if state == 'completed' or (state == 'archived' and kind == mode) then state = nil end
  if state == 'active' and (kind == 's' or kind == 'b') then state = nil end
  if not state then
    if tonumber(ends) <= now or how.on_lock == 'p' then return nil end
    return refusal, holder
  end
  if how.kind == 'k' and state == 'active' then
    local behind = lock('+' .. key)
    if behind and state_of(holder_of(behind)) == 'waiting' then return 'merged', holder_of(behind) end
    return 'behind', holder
  end
  if state == 'waiting' then
    if how.kind == 'k' or how.kind == 'b' then return 'merged', holder end
    if how.on_lock == 'p' then return 'replace', holder end
  end
  if state == 'archived' and how.on_lock == 'p' then return nil end
  return refusal, holder
end

-- Waits for the running one with the same lock; tidy gives it the lock when that one has ended.
local function wait_behind(how, id, key, message, due)
  -- A lock that was taken in another mode is handed on as well.
  local record = lock(key)
  local mode = record and string.sub(record, 1, 1)
  if mode and string.lower(mode) ~= 'k' then
    set_lock(key, (mode == string.lower(mode) and 'k' or 'K') .. string.sub(record, 2))
  end
  redis.call('ZADD', scheduled, NEVER, id)
  redis.call('HSET', parked, id, how.lane .. '0:' .. message)
  set_lock('+' .. key, how.mode .. string.format('%.0f', due) .. ' ' .. id)
  redis.call('HSET', owners, id, key)
  return 'scheduled'
end

-- The newest takes the place of the one that waits, under its id. The last of a keep-last lock goes ahead of who came
-- later than the first, or it might never run.
local function merge(how, holder, key, message, late)
  local behind = lock('+' .. key)
  if behind and holder_of(behind) == holder and not late then
    remove(holder)
    wait_behind(how, holder, key, message, how.due)
  else
    if late then
      if state_of(late) == 'waiting' then remove(late) end
      redis.call('HDEL', owners, late)
      set_lock('+' .. key, false)
    end
    local lane = how.kind == 'k' and redis.call('HEXISTS', index, holder) == 1 and 'f' or how.lane
    remove(holder)
    place(how, holder, message, how.due, lane)
    own(how, holder, key)
  end
  return 'merged:' .. holder
end

-- The limits of the queue

local limits = redis.call('HGET', config, 'limits')
local limited = limits and 1 or 0
local size, used = 0, {}
if limits then
  limits = cjson.decode(limits)
  if limits.size then
    size = redis.call('HLEN', index) + redis.call('HLEN', parked)
      - redis.call('ZCARD', completed) - redis.call('ZCARD', archived)
  end
  for field, rate in pairs({q = limits.rate or false, [producer] = limits.producer_rate or false}) do
    if rate then
      local until_us = tonumber(redis.call('HGET', rates, field) or 0)
      used[#used + 1] = {field = field, until_us = until_us, step = rate[2] * 1000 / rate[1], burst = rate[2] * 1000}
    end
  end
end

-- The type's name in a message, which begins {"v": 1, "t": name (RFC 8949, 3: text has the head 0x60 + length, or 0x78
-- and the length).
local function type_of(message)
  local head = string.byte(string.match(message, '^.av\1at(.)') or '')
  if not head then return '' end
  if head == 120 then return string.sub(message, 9, 8 + string.byte(message, 8)) end
  return string.sub(message, 8, 7 + head - 96)
end

local function is_allowed(name)
  for _, allowed in ipairs(limits.types) do
    local stem = string.match(allowed, '^(.*)%*$')
    if name == allowed or (stem and string.sub(name, 1, #stem) == stem) then return true end
  end
  return false
end

-- A rate by the generic cell rate algorithm (ITU-T I.371): a task moves the time at which the rate is used up by one
-- step, and may come while that time is less than a burst ahead.
local function wait_us()
  local wait = 0
  for _, rate in ipairs(used) do
    wait = math.max(wait, math.max(rate.until_us, now_us) + rate.step - rate.burst - now_us)
  end
  return wait
end

local function refused(message, grows)
  if limits.types and not is_allowed(type_of(message)) then return 'type' end
  if limits.bytes and #message > limits.bytes then return 'large' end
  if grows and limits.size and size >= limits.size then return 'full' end
  local wait = wait_us()
  if wait > 0 then return 'rate:' .. math.ceil(wait / 1000) end
  for _, rate in ipairs(used) do rate.until_us = math.max(rate.until_us, now_us) + rate.step end
  if grows then size = size + 1 end
end

-- One task after the other: check, then write

-- A task that something stands in the way of, or may.
local function store_with_care(how, id, key, message)
  local word, remains, holder, late
  write_out()
  if how.conflict then
    word, remains = id_met(how.conflict, id)
    if word then return word end
  end
  if key then
    word, holder, late = met(how, id, key)
    -- A task that takes the place of its own former self is no duplicate of it.
    if holder == id and how.conflict == 'p' then word = nil end
    if word == 'duplicate' or word == 'existing' then return word .. ':' .. holder end
  end
  if limited == 1 then
    local no = refused(message, word ~= 'merged' and word ~= 'replace')
    if no then return no end
  end
  if word == 'merged' then return merge(how, holder, key, message, late) end
  if remains then remove(id) end
  if how.conflict then free(id) end
  if word == 'behind' then return wait_behind(how, id, key, message, how.due) end
  if word == 'replace' then
    remove(holder)
    free(holder)
  end
  word = place(how, id, message, how.due, how.lane)
  if key then own(how, id, key) end
  return word
end

local function store(how, id, key, message)
  if lock_of[key or ''] or (how.conflict and (known[id] or redis.call('HEXISTS', parked, id) == 1)) then
    return store_with_care(how, id, key, message)
  end
  if limited == 1 then
    local no = refused(message, true)
    if no then return no end
  end
  known[id] = true
  if key then
    how.claim = how.claim or claim(how)
    local record = how.claim .. id
    lock_of[key] = record
    locked[#locked + 1] = key
    locked[#locked + 1] = record
    owned[#owned + 1] = id
    owned[#owned + 1] = key
  end
  return place(how, id, message, how.due, how.lane)
end

-- A task that has a lock and nothing else, as most here: what store does of it, without its questions.
local function store_locked(how, id, key, message)
  if lock_of[key] then return store_with_care(how, id, key, message) end
  local lane, record, n, m = how.lane, how.claim .. id, #indexed, #locked
  indexed[n + 1], indexed[n + 2] = id, lane .. redis.call('XADD', lanes[lane], '*', 'id', id, 'm', message)
  locked[m + 1], locked[m + 2] = key, record
  owned[m + 1], owned[m + 2] = id, key
  lock_of[key] = record
  return 'ready'
end

-- A tick is taken by whoever finds it expected, and by nobody again.
local function fire(how, id, key, message)
  local tick_ms = how.expected
  if tick_ms == '0' then
    -- Somebody fires it by hand: the schedule goes on as it is.
    tick_ms = string.format('%.0f', now)
  else
    local due = redis.call('ZSCORE', cron_due, how.cron)
    if not due or tonumber(due) ~= tonumber(tick_ms) then return 'stale' end
    if how.next == '0' then
      redis.call('ZREM', cron_due, how.cron)
    else
      redis.call('ZADD', cron_due, how.next, how.cron)
    end
  end
  local word = store(how, id, key, message)
  local tick = {#how.cron .. ':' .. how.cron, tick_ms, string.format('%.0f', now), word, id}
  redis.call('LPUSH', ticks, table.concat(tick, ' '))
  redis.call('LTRIM', ticks, 0, 999)
  return word
end

local function step_of(how)
  if how.cron then return fire end
  if not how.mode or how.due > now or how.rule or limited == 1 or #chosen > 0 then return store end
  how.claim = claim(how)
  return store_locked
end

local words, uniform = {}, true
for _, run in ipairs(runs) do
  local step = step_of(run.how)
  for i = run.from, run.from + run.count - 1 do
    local word = step(run.how, ids[i], keys[i], ARGV[i + run.count])
    words[#words + 1] = word
    if word ~= words[1] then uniform = false end
  end
end

write_out()
if #used > 0 then
  for _, rate in ipairs(used) do redis.call('HSET', rates, rate.field, string.format('%.0f', rate.until_us)) end
  redis.call('PEXPIRE', rates, 86400000)
end

local reply = uniform and words[1] or table.concat(words, ' ')
redis.call('HSET', producers, producer, ARGV[2] .. ' ' .. now .. ' ' .. first_id .. ' ' .. reply)
-- Forwarders and aggregators sleep until the next time they know of; a user without rights to the channel only wakes
-- them later. A group that has come to be due later than before needs no word: they look again then.
local head = next_due and redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')
local sooner = next_batch and (not former_batch or next_batch < former_batch)
if sooner or (head and tonumber(head[2]) == next_due) then redis.pcall('PUBLISH', hints, 'due') end
-- Where this producer was known, the queue has not been removed since its last call.
if not last and redis.call('HSETNX', config, 'created', now) == 1 then return {'new', reply, limited} end
return {'known', reply, limited}
