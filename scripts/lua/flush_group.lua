-- Makes batches of the oldest members of groups that are due: each batch is one task, with one entry, like any other.
-- EDGE aggregating -> ready
-- KEYS[1] high – stream, lane of high priority
-- KEYS[2] normal – stream
-- KEYS[3] low – stream
-- KEYS[4] index – hash, task id to lane letter and entry id
-- KEYS[5] parked – hash, task id to lane, crashes and message
-- KEYS[6] aggregating – sorted set, members of all groups in order of arrival
-- KEYS[7] groups – sorted set, group by the time in ms at which it becomes a batch
-- KEYS[8] grouped – hash, task id to arrival, rule and group; or "=" and its batch
-- ARGV[1] done – channel prefix; the task id follows it
-- ARGV[2] limit – most members of a batch, whatever its rule says, at most 500; a call ends when it has moved so many
-- ARGV[3] bytes – of messages of a batch; its oldest member goes along however large it is. A call ends likewise
-- ARGV[4...] ids for the batches, which no task ever had
-- RETURNS {batches, members, orphans, next}: batches made, and members in them; members without a body, dropped; ms until
--         the next group is due (0: more are due now, -1: there is none)
-- COST about 10 us a member and 30 a batch; less than twice the limit and twice the bytes a call
local lanes = {h = KEYS[1], n = KEYS[2], l = KEYS[3]}
local index, parked, aggregating, groups, grouped = KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local limit, bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local batches, members, orphans, moved, moved_bytes = 0, 0, 0, 0, 0

-- The head of a CBOR item: major type and length (RFC 8949, 3).
local function head(major, length)
  local first = major * 32
  if length < 24 then return string.char(first + length) end
  if length < 256 then return string.char(first + 24, length) end
  if length < 65536 then return string.char(first + 25, math.floor(length / 256), length % 256) end
  return string.char(first + 26, math.floor(length / 16777216), math.floor(length / 65536) % 256,
    math.floor(length / 256) % 256, length % 256)
end
local function int64(number)
  local bytes = {}
  for place = 8, 1, -1 do
    bytes[place] = string.char(number % 256)
    number = math.floor(number / 256)
  end
  return string.char(27) .. table.concat(bytes)
end
local function bytes_item(text) return head(2, #text) .. text end
local function text_item(text) return head(3, #text) .. text end

-- The message of a batch: a map like that of any task, whose payload is the list id, message, id, message ...
local function message_of(group, ids, bodies)
  local parts, kind, name = {head(4, 2 * #ids)}, string.match(group, '^([^\n]*)\n(.*)$')
  for i, id in ipairs(ids) do
    parts[#parts + 1] = bytes_item(id)
    parts[#parts + 1] = head(2, #bodies[i])
    parts[#parts + 1] = bodies[i]
  end
  local payload = table.concat(parts)
  if not kind then kind, name = '', group end
  return table.concat({
    head(5, 5), text_item('v'), head(0, 1), text_item('t'), text_item(kind), text_item('e'), int64(now),
    text_item('g'), text_item(name), text_item('p'), head(2, #payload), payload,
  })
end

-- A name that makes no sense has no id, and came at no time: it is dropped like a member without a body.
local function id_of(name) return string.match(name, '^[^%z]*%z%d+%z(.+)$') or '' end
local function arrival_of(name) return math.floor((tonumber(string.match(name, '^[^%z]*%z(%d+)%z')) or 0) / 1000) end

-- The rule of the member that came last holds for its group.
local function rule_of(from, to)
  local newest = redis.call('ZREVRANGEBYLEX', aggregating, to, from, 'LIMIT', 0, 1)[1]
  if not newest then return nil end
  local record = redis.call('HGET', grouped, id_of(newest))
  local grace, delay, size = string.match(record or '', '^%d+ (%d+),(%d+),(%d+),')
  return tonumber(grace or 0), tonumber(delay or 0), tonumber(size or 0), newest
end

-- What stays behind is due by the group's rule, counted from those that stay; a group without members is none.
local function renew(group, from, to)
  local grace, delay, size, newest = rule_of(from, to)
  if not grace then
    redis.call('ZREM', groups, group)
    return
  end
  local due = arrival_of(newest) + grace
  if delay > 0 then
    local oldest = redis.call('ZRANGEBYLEX', aggregating, from, to, 'LIMIT', 0, 1)[1]
    due = math.min(due, arrival_of(oldest) + delay)
  end
  if size > 0 and redis.call('ZLEXCOUNT', aggregating, from, to) >= size then due = now end
  redis.call('ZADD', groups, due, group)
end

-- As many of the oldest members as may go together.
local function take(group, from, to)
  local _, _, size = rule_of(from, to)
  local most = size and size > 0 and math.min(limit, size) or limit
  local taken = {names = {}, ids = {}, bodies = {}, size = 0}
  for _, name in ipairs(redis.call('ZRANGEBYLEX', aggregating, from, to, 'LIMIT', 0, most)) do
    local id = id_of(name)
    local value = redis.call('HGET', parked, id)
    -- What makes no sense goes along whole: the worker that cannot read it keeps it.
    local home, body = string.match(value or '', '^([hnl])%d+:(.*)$')
    body = body or value
    if body and #taken.ids > 0 and taken.size + #body > bytes then break end
    taken.names[#taken.names + 1] = name
    if body then
      taken.lane = taken.lane or home
      taken.ids[#taken.ids + 1] = id
      taken.bodies[#taken.bodies + 1] = body
      taken.size = taken.size + #body
    else
      orphans = orphans + 1
      redis.call('HDEL', grouped, id)
    end
  end
  return taken
end

local function flush(group, batch)
  local from, to = '[' .. group .. '\0', '(' .. group .. '\1'
  local taken = take(group, from, to)
  if #taken.ids > 0 then
    local lane = taken.lane or 'n'
    local message = message_of(group, taken.ids, taken.bodies)
    redis.call('HSET', index, batch, lane .. redis.call('XADD', lanes[lane], '*', 'id', batch, 'm', message))
    local places = {}
    for i, id in ipairs(taken.ids) do
      places[2 * i - 1], places[2 * i] = id, '=' .. batch
      redis.pcall('PUBLISH', ARGV[1] .. id, 'batched')
    end
    redis.call('HSET', grouped, unpack(places))
    redis.call('HDEL', parked, unpack(taken.ids))
    batches, members = batches + 1, members + #taken.ids
  end
  if #taken.names > 0 then redis.call('ZREM', aggregating, unpack(taken.names)) end
  renew(group, from, to)
  moved, moved_bytes = moved + #taken.names, moved_bytes + taken.size
  return #taken.ids > 0
end

-- After a write that needs no memory Redis lets the others pass when memory is full: members alone may fill it, and room
-- is made only by running them. No task has an empty id.
if redis.call('EXISTS', groups) == 1 then redis.call('HDEL', parked, '') end
local id = 4
for _, group in ipairs(redis.call('ZRANGEBYSCORE', groups, '-inf', now, 'LIMIT', 0, #ARGV - 3)) do
  if moved >= limit or moved_bytes >= bytes then break end
  if flush(group, ARGV[id]) then id = id + 1 end
end

local first = redis.call('ZRANGE', groups, 0, 0, 'WITHSCORES')
return {batches, members, orphans, first[2] and math.max(0, first[2] - now) or -1}
