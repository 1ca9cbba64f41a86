-- Takes nonces that are free, one after the other, on the server's clock.
--
-- KEYS: the marker; then per claim the sorted set of its key's nonces, scored by when each ends.
-- ARGV: the skew in microseconds; how many nonces a key may hold; a random id, for a marker that is
--   not there; '1' if no claim can have been lost with it; the id of the place in force, '' for any;
--   its birth in microseconds; then per claim: the nonce, its timestamp in microseconds, when it
--   ends in seconds, and since when its key exists in microseconds.
-- Returns: the id of this place; its birth in microseconds; then per claim 0 (taken), 1 (replayed)
--   or 2 (refused).
--
-- The marker says which place this is ("place"), since when no claim was lost ("birth"), in which
-- process of the server ("run"), how far nonces may have been forgotten ("high", seconds), and when
-- that was looked at ("tick").

local time = redis.call('TIME')
local second = tonumber(time[1])
local marker = redis.call('HMGET', KEYS[1], 'birth', 'high', 'tick', 'run', 'place')
local place = marker[5] or ARGV[3]
local birth, high = tonumber(marker[1]), tonumber(marker[2]) or 0

-- Looked at in each second's first claim: in another process of the server, restarted or promoted
-- from a replica, the last claims may be missing although the marker is there.
if not birth or not marker[5] or tonumber(marker[3]) ~= second then
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  if not run then return redis.error_reply('ERR this server does not tell its run_id') end
  if not birth and ARGV[4] == '1' then
    birth = 0
  elseif not birth or marker[4] ~= run then
    birth = second * 1000000 + tonumber(time[2])
  end
  -- Should the clock come back, what was forgotten must not be taken for new.
  if second > high then high = second end
  redis.call('HSET', KEYS[1], 'birth', string.format('%.0f', birth), 'high', high, 'tick', second,
    'run', run, 'place', place)
end
if tonumber(ARGV[6]) > birth then birth = tonumber(ARGV[6]) end
local here = ARGV[5] == '' or ARGV[5] == place

local skew, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local answer = {place, birth}
for i = 2, #KEYS do
  local key, a = KEYS[i], 7 + 4 * (i - 2)
  local nonce, ends = ARGV[a], tonumber(ARGV[a + 2])
  local result = 0
  -- When the key was made is told by a node's clock, so the skew counts there too.
  if not here
    or tonumber(ARGV[a + 3]) < birth + skew and tonumber(ARGV[a + 1]) <= birth + skew
  then
    result = 2
  elseif ends < high then
    result = 2
  else
    redis.call('ZREMRANGEBYSCORE', key, '-inf', '(' .. high)
    if redis.call('ZSCORE', key, nonce) then
      result = 1
    elseif redis.call('ZCARD', key) >= most then
      result = 2
    else
      redis.call('ZADD', key, ends, nonce)
      -- An hour longer, for a clock that steps back; and never sooner than for another nonce.
      local lasts = ends - second + 3600
      if redis.call('TTL', key) < lasts then redis.call('EXPIRE', key, lasts) end
    end
  end
  answer[i + 1] = result
end
return answer
