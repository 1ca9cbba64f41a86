-- Decides requests one after the other by GCRA, as core/limits.py does, on the server's clock.
--
-- KEYS: of each request the key whose limits are asked; one key may come several times.
-- ARGV: per request the number of its limits; then per limit: its name and numbers as one text
--   without ";" and "=", its limit, its window in microseconds, and what the request takes: whole
--   microseconds and a remainder in units of 1/limit microseconds.
-- Returns: the time in microseconds; then per request 1 or 0, and per limit the arrival time
--   from now on, in whole microseconds and the remainder.
--
-- Lua has doubles only. An arrival time in ticks of 1/limit microseconds does not fit one, but its
-- whole microseconds (below 2^51) and the remainder (below 2 * 10^9) do: nothing here is rounded.
--
-- Stored is "text=microseconds,remainder;" per limit, until all of them would be full again.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local answer = {now}
local at = 1
for _, key in ipairs(KEYS) do
  local count = tonumber(ARGV[at])
  local first = at + 1
  at = first + 5 * count

  local stored = redis.call('GET', key)
  local known, order = {}, {}
  if stored then
    for text, whole, rest in string.gmatch(stored, '([^=;]+)=(%d+),(%d+);') do
      known[text] = {tonumber(whole), tonumber(rest)}
      order[#order + 1] = text
    end
  end

  local before, after = {}, {}
  local allowed, changed = 1, #order ~= count
  for i = 1, count do
    local a = first + 5 * (i - 1)
    local limit, window = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
    local arrival = known[ARGV[a]] or {0, 0}
    changed = changed or order[i] ~= ARGV[a]
    -- Only a clock that went back can leave more than a window ahead of it. What is taken off is
    -- written down also after a refusal, else it would never come nearer.
    if arrival[1] > now + window then arrival, changed = {now + window, 0}, true end
    before[i] = arrival
    local whole, rest = arrival[1], arrival[2]
    if whole < now then whole, rest = now, 0 end
    whole, rest = whole + tonumber(ARGV[a + 3]), rest + tonumber(ARGV[a + 4])
    if rest >= limit then whole, rest = whole + 1, rest - limit end
    if whole - now > window or (whole - now == window and rest > 0) then allowed = 0 end
    after[i] = {whole, rest}
  end

  local arrivals = allowed == 1 and after or before
  if allowed == 1 or (stored and changed) then
    local lasts, texts = 0, {}
    for i = 1, count do
      local whole, rest = arrivals[i][1], arrivals[i][2]
      if whole - now >= lasts then lasts = whole - now + 1 end
      texts[i] = string.format('%s=%.0f,%.0f;', ARGV[first + 5 * (i - 1)], whole, rest)
    end
    if lasts > 0 then
      -- Redis counts from the start of a millisecond, so one more; and one for rounding up.
      local ttl = string.format('%.0f', math.floor(lasts / 1000) + 2)
      redis.call('SET', key, table.concat(texts), 'PX', ttl)
    else
      redis.call('DEL', key)
    end
  end

  answer[#answer + 1] = allowed
  for i = 1, count do
    answer[#answer + 1] = arrivals[i][1]
    answer[#answer + 1] = arrivals[i][2]
  end
end
return answer
