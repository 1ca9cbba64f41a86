-- Decides requests one after the other by GCRA, as core/limits.py does, on the server's clock.
--
-- KEYS: of each request the buckets that it takes from: its key's own limits, and one for each limit
--   that other keys share; one bucket may come several times.
-- ARGV: per request the number of its buckets; per bucket the number of its limits; then per limit:
--   its name and numbers as one text without ";" and "=", its limit, its window in microseconds, and
--   what the request takes: whole microseconds and a remainder in units of 1/limit microseconds.
-- Returns: the time in microseconds; then per request 1 or 0, and per limit the arrival time
--   from now on, in whole microseconds and the remainder.
--
-- Lua has doubles only. An arrival time in ticks of 1/limit microseconds does not fit one, but its
-- whole microseconds (below 2^51) and the remainder (below 2 * 10^9) do: nothing here is rounded.
--
-- Stored is "text=microseconds,remainder;" per limit, until all of a bucket would be full again.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local answer = {now}
local at, key_at = 1, 1

-- What a bucket holds, and what it would hold after this request.
local function look(key, count)
  local stored = redis.call('GET', key)
  local known, order = {}, {}
  if stored then
    for text, whole, rest in string.gmatch(stored, '([^=;]+)=(%d+),(%d+);') do
      known[text] = {tonumber(whole), tonumber(rest)}
      order[#order + 1] = text
    end
  end
  local bucket = {
    key = key, count = count, first = at, stored = stored, changed = #order ~= count,
    before = {}, after = {}, takes = false, allowed = true,
  }
  for i = 1, count do
    local a = at + 5 * (i - 1)
    local limit, window = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
    local arrival = known[ARGV[a]] or {0, 0}
    bucket.changed = bucket.changed or order[i] ~= ARGV[a]
    -- Only a clock that went back can leave more than a window ahead of it. What is taken off is
    -- written down also after a refusal, else it would never come nearer.
    if arrival[1] > now + window then arrival, bucket.changed = {now + window, 0}, true end
    bucket.before[i] = arrival
    local whole, rest = arrival[1], arrival[2]
    if whole < now then whole, rest = now, 0 end
    local takes, takes_rest = tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
    bucket.takes = bucket.takes or takes > 0 or takes_rest > 0
    whole, rest = whole + takes, rest + takes_rest
    if rest >= limit then whole, rest = whole + 1, rest - limit end
    if whole - now > window or (whole - now == window and rest > 0) then bucket.allowed = false end
    bucket.after[i] = {whole, rest}
  end
  at = at + 5 * count
  return bucket
end

local function keep(bucket, arrivals)
  local lasts, texts = 0, {}
  for i = 1, bucket.count do
    local whole, rest = arrivals[i][1], arrivals[i][2]
    if whole - now >= lasts then lasts = whole - now + 1 end
    texts[i] = string.format('%s=%.0f,%.0f;', ARGV[bucket.first + 5 * (i - 1)], whole, rest)
  end
  if lasts > 0 then
    -- Redis counts from the start of a millisecond, so one more; and one for rounding up.
    local ttl = string.format('%.0f', math.floor(lasts / 1000) + 2)
    redis.call('SET', bucket.key, table.concat(texts), 'PX', ttl)
  else
    redis.call('DEL', bucket.key)
  end
end

while at <= #ARGV do
  local buckets, allowed = {}, true
  for b = 1, tonumber(ARGV[at]) do
    buckets[b] = KEYS[key_at]
    key_at = key_at + 1
  end
  at = at + 1
  for b = 1, #buckets do
    local count = tonumber(ARGV[at])
    at = at + 1
    buckets[b] = look(buckets[b], count)
    allowed = allowed and buckets[b].allowed
  end
  answer[#answer + 1] = allowed and 1 or 0
  for _, bucket in ipairs(buckets) do
    local arrivals = allowed and bucket.after or bucket.before
    if (allowed and bucket.takes) or (bucket.stored and bucket.changed) then
      keep(bucket, arrivals)
    end
    for i = 1, bucket.count do
      answer[#answer + 1] = arrivals[i][1]
      answer[#answer + 1] = arrivals[i][2]
    end
  end
end
return answer
