-- Asks for many tasks whether all the limits of each let it start now; if so all of them count it, else none does.
-- EDGE none
-- KEYS[1] front – stream, looked at to see which tokens are of tasks that still run
-- KEYS[2] high – stream
-- KEYS[3] normal – stream
-- KEYS[4] low – stream
-- KEYS[5] limiters – sorted set, name of a limiter by the time in ms at which its keys are gone by themselves
-- KEYS[6...] limit – two per limiter: what it counted (sorted set of tokens by when each was last seen alive in ms; or
--         when a bucket is full again, in us; or list of starts in us), and who waits (sorted set of task ids by when they
--         last asked in ms; for buckets and windows the last turn promised, in us)
-- ARGV[1] longest – ms that a task is told to wait at most
-- ARGV[2] count – limiters of this call
-- ARGV[3...] four per limiter: name, kind, and two numbers: c, limit, 0 (concurrency); b, us per token, burst (token
--         bucket); w, limit, us (sliding window). Then per task: token, id, how many limiters it has, which ones
-- RETURNS one number per task: 0 when it may start, else ms to wait; below 0 when it waits for others to end, and nobody
--         knows for how long: it is roused then, and asks by itself after that many ms at the soonest. Then one number
--         per limiter: places found free because their tasks are not active any more
-- COST about 8 us per task and limiter, 4 us per token looked after; at most 100 tasks a call, held by the caller
local lanes = {f = KEYS[1], h = KEYS[2], n = KEYS[3], l = KEYS[4]}
local limiters, longest, count = KEYS[5], ARGV[1] * 1000, tonumber(ARGV[2])
local seen, page, kept, pace, waits = 1000, 50, 2592000000, 5000, 600000

-- After a write that needs no memory Redis lets the others pass when memory is full: only running tasks make room.
redis.call('ZREM', limiters, '')
local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local now = math.floor(us / 1000)

local rules, at = {}, 3
for i = 1, count do
  rules[i] = {
    name = ARGV[at], kind = ARGV[at + 1], a = tonumber(ARGV[at + 2]), b = tonumber(ARGV[at + 3]),
    key = KEYS[4 + 2 * i], turn = KEYS[5 + 2 * i], freed = 0,
  }
  at = at + 4
end

-- A token is lane letter and entry id. Its task runs, or is about to be recovered, while the entry is pending.
local function alive(token)
  local lane, entry = lanes[string.sub(token, 1, 1)], string.sub(token, 2)
  if not lane or not string.find(entry, '^%d+%-%d+$') then return false end
  local rows = redis.pcall('XPENDING', lane, 'w', entry, entry, 1)
  if rows.err and not string.find(rows.err, 'NOGROUP', 1, true) then error(rows.err) end
  return not rows.err and #rows == 1
end

-- Tokens are given back when their tasks are settled; those of workers that died are found here, some at a time,
-- those first that were not seen for longest.
local function tend(rule)
  local key = rule.key
  for _, token in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', now - seen, 'LIMIT', 0, page)) do
    if alive(token) then
      redis.call('ZADD', key, now, token)
    else
      rule.freed = rule.freed + redis.call('ZREM', key, token)
    end
  end
end

-- Us until this limit would let a task start: 0 for now, -1 for when another one ends.
local function wait_of(rule)
  local key = rule.key
  if rule.kind == 'c' then
    if redis.call('ZCARD', key) < rule.a then return 0 end
    if rule.tended then return -1 end
    tend(rule)
    rule.tended = true
    return redis.call('ZCARD', key) < rule.a and 0 or -1
  elseif rule.kind == 'b' then
    local full = tonumber(redis.call('GET', key) or us)
    return math.max(0, full - us - (rule.b - 1) * rule.a)
  end
  local start = redis.call('LINDEX', key, -rule.a)
  return start and math.max(0, start + rule.b - us) or 0
end

local function remember(rule, ms)
  redis.call('ZADD', limiters, 'GT', now + ms, rule.name)
end

local function take(rule, token)
  local key, ms = rule.key, kept
  if rule.kind == 'c' then
    redis.call('ZADD', key, now, token)
    redis.call('PEXPIRE', key, ms)
  elseif rule.kind == 'b' then
    local full = math.max(us, tonumber(redis.call('GET', key) or us)) + rule.a
    ms = math.ceil((full - us) / 1000) + 1
    redis.call('SET', key, full, 'PX', ms)
  else
    -- One start comes and up to two leave, so the list holds what lies in the window and little more.
    redis.call('RPUSH', key, us)
    for _ = 1, 2 do
      if redis.call('LINDEX', key, 0) + rule.b <= us then redis.call('LPOP', key) end
    end
    ms = math.ceil(rule.b / 1000) + 1
    redis.call('PEXPIRE', key, ms)
  end
  remember(rule, ms)
end

-- Tasks that wait for the same rate get turns one after the other: else all would come back for the one next token.
-- A turn is a time to ask again, not a right to start.
local function promise(rule, wait)
  local key, apart = rule.turn, rule.kind == 'b' and rule.a or rule.b / rule.a
  local mine = math.max((tonumber(redis.call('GET', key) or 0)) + apart, us + wait) - us
  if mine >= longest then return longest end
  local ms = math.ceil(mine / 1000) + 1
  redis.call('SET', key, us + mine, 'PX', ms)
  remember(rule, ms)
  return mine
end

-- Who waits for others to end is roused when one does. That it asks by itself all the same is for places of workers that
-- died; the more wait, the longer that takes, so that Redis is asked so often at most.
local function queue_up(rule, id)
  local turn = rule.turn
  redis.call('ZADD', turn, now, id)
  redis.call('PEXPIRE', turn, waits)
  remember(rule, waits)
  return math.ceil(redis.call('ZCARD', turn) * pace / 1000 / math.max(1, rule.a))
end

local answers = {}
while at <= #ARGV do
  local token, id, last = ARGV[at], ARGV[at + 1], at + 2 + ARGV[at + 2]
  local answer, others = 0, 0
  for i = at + 3, last do
    local rule = rules[tonumber(ARGV[i])]
    local turn, wait = rule.turn, wait_of(rule)
    if wait > 0 then
      answer = math.max(answer, math.ceil(promise(rule, wait) / 1000))
    elseif wait < 0 then
      others = math.max(others, queue_up(rule, id))
    elseif rule.kind == 'c' then
      -- What it waits for, if it does, is another limit.
      redis.call('ZREM', turn, id)
    end
  end
  if answer == 0 and others > 0 then
    answer = -others
  elseif answer == 0 then
    for i = at + 3, last do take(rules[tonumber(ARGV[i])], token) end
  end
  answers[#answers + 1] = answer
  at = last + 1
end

local gone = redis.call('ZRANGEBYSCORE', limiters, '-inf', now, 'LIMIT', 0, 20)
if #gone > 0 then redis.call('ZREM', limiters, unpack(gone)) end
for i = 1, count do answers[#answers + 1] = rules[i].freed end
return answers
