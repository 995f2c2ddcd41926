-- Settles tasks of one lane that succeeded and are not kept.
-- EDGE active -> gone
-- KEYS[1] lane – stream that holds the entries
-- KEYS[2] index – hash, task id to lane letter and entry id
-- KEYS[3] stats – hash, counters over all time
-- KEYS[4] day – hash, counters of this UTC day
-- ARGV[1...n] entry ids
-- ARGV[n+1...2n] task ids, in the same order
-- RETURNS one word per task, separated by spaces: ok, lost; "ok" alone when all are ok
-- COST about 3 us a task; at most 500 tasks a call, held by the caller
local lane, index, stats, day = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local n = #ARGV / 2
local reply, done = 'ok', n

-- XACK comes first: it is the token, and it passes when Redis is out of memory.
if redis.call('XACK', lane, 'w', unpack(ARGV, 1, n)) == n then
  redis.call('XDEL', lane, unpack(ARGV, 1, n))
  redis.call('HDEL', index, unpack(ARGV, n + 1, 2 * n))
else
  -- Some were lost. An entry leaves the group and the stream in one script, always, so that an
  -- entry which is still in the stream is one whose XACK above returned 1.
  local words = {}
  done = 0
  for i = 1, n do
    if redis.call('XDEL', lane, ARGV[i]) == 1 then
      redis.call('HDEL', index, ARGV[n + i])
      done = done + 1
      words[i] = 'ok'
    else
      words[i] = 'lost'
    end
  end
  reply = table.concat(words, ' ')
end

-- A counter at its end starts again rather than fail the script, which could not be rolled back.
local function count(key, field, by)
  local total = redis.pcall('HINCRBY', key, field, by)
  if type(total) == 'table' then redis.pcall('HSET', key, field, by) end
  return total
end
if done > 0 then
  count(stats, 'processed', done)
  -- The first count of a day makes the key.
  if count(day, 'processed', done) == done then redis.pcall('EXPIRE', day, 7776000) end
end
return reply
