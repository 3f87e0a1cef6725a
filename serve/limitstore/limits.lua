-- What tenants hold, in one atomic step of Redis. The same sums as in memory.py; the rules stand in serve/limits.py.
-- KEYS: for each level its sums (hash), its holds (hash), their expiries (sorted set); then the record of the hold, or of
-- each hold that is renewed.
-- ARGV[1]: JSON. `now_us` is there in tests only; otherwise Redis's clock counts, the same one for all routers.
-- Answers: a status, the time, and for `reserve` the account of each level, in the order of FIELDS.
-- Whole numbers below 2^53 are exact in Lua's doubles; they are written by `whole`, never in scientific form.

local FIELDS = {'requests_full_us', 'tokens_full_us', 'day_end_us', 'day_tokens', 'month_end_us', 'month_cost',
    'running', 'held_queued', 'held_tokens', 'held_cost', 'done_us', 'done_gap_us', 'left_us', 'left_pace_ns', 'known',
    'seen_us'}
local MINUTE_US, DAY_US = 60000000, 86400000000
local MIDNIGHT_US, LONGEST_GAP_US = 5 * MINUTE_US, 2 * MINUTE_US

local ask = cjson.decode(ARGV[1])
local now = ask.now_us
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function whole(number) return string.format('%.0f', number) end

local function refill(amount, per_minute) return math.floor(amount * MINUTE_US / per_minute + 0.5) end

local function filled(full, amount, per_minute)
    if not per_minute or per_minute == 0 or amount == 0 then return full end
    if amount < 0 then return full - refill(-amount, per_minute) end
    return math.max(full, now) + refill(amount, per_minute)
end

local function mean(before, sample)
    if before == 0 then return math.max(1, sample) end
    return math.max(1, before + math.floor((sample - before) / 8))
end

local function held_of(a, id)
    local text = redis.call('HGET', a.holds, id)
    if not text then return nil end
    local queued, tokens, cost = string.match(text, '^(%d+) (%d+) (%d+)$')
    return {queued = tonumber(queued), tokens = tonumber(tokens), cost = tonumber(cost)}
end

local function put(a, id, held)
    a.running = a.running + 1
    a.held_queued = a.held_queued + held.queued
    a.held_tokens = a.held_tokens + held.tokens
    a.held_cost = a.held_cost + held.cost
    redis.call('HSET', a.holds, id, whole(held.queued) .. ' ' .. whole(held.tokens) .. ' ' .. whole(held.cost))
    redis.call('ZADD', a.expiries, whole(now + ask.hold_us), id)
end

local function remove(a, id)
    local held = held_of(a, id)
    if held then
        a.running = a.running - 1
        a.held_queued = a.held_queued - held.queued
        a.held_tokens = a.held_tokens - held.tokens
        a.held_cost = a.held_cost - held.cost
        redis.call('HDEL', a.holds, id)
        redis.call('ZREM', a.expiries, id)
    end
    return held
end

local function day_end(at) return (math.floor(at / DAY_US) + 1) * DAY_US end

-- By the civil calendar, whose years begin in March here: then the leap day is the last one of a year.
local function month_end(at)
    local day = math.floor(at / DAY_US) + 719468
    local era = math.floor(day / 146097)
    local of_era = day - era * 146097
    local year = math.floor((of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524)
        - math.floor(of_era / 146096)) / 365)
    local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
    local next_month = math.floor((5 * of_year + 2) / 153) + 1
    local start = math.floor((153 * next_month + 2) / 5)
    if next_month == 12 then -- the first of March
        year = year + 1
        start = 0
    end
    local leap_days = math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400)
    return (era * 146097 + 365 * year + leap_days + start - 719468) * DAY_US
end

-- Whether a window ends at its midnight, and not because a clock was set: see serve/limits.py.
local function ends_by_itself(seen, window_end)
    return window_end - MIDNIGHT_US <= seen and window_end <= now and now < window_end + MIDNIGHT_US
end

-- The clock was set back: what is kept must not outlast its time.
local function go_back(a)
    local by = a.seen_us - now
    for _, name in ipairs({'requests_full_us', 'tokens_full_us', 'done_us', 'left_us'}) do a[name] = a[name] - by end
    local longest = whole(now + ask.hold_us)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', a.expiries, '(' .. longest, '+inf')) do
        redis.call('ZADD', a.expiries, longest, id)
    end
end

-- Reading an account lets holds of dead routers expire and windows end.
local function read(i)
    local a = {sums = KEYS[3 * i - 2], holds = KEYS[3 * i - 1], expiries = KEYS[3 * i], limits = ask.limits[i]}
    local sums = redis.call('HMGET', a.sums, unpack(FIELDS))
    for n, name in ipairs(FIELDS) do a[name] = tonumber(sums[n] or '0') end
    if now < a.seen_us then go_back(a) end
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', a.expiries, '-inf', whole(now))) do remove(a, id) end
    local this_day = day_end(now)
    if this_day ~= a.day_end_us then
        if not ends_by_itself(a.seen_us, a.day_end_us) then a.known = 0 end
        if a.day_end_us <= now then a.day_tokens = 0 end
        a.day_end_us = this_day
    end
    if now < a.seen_us or a.month_end_us <= now or a.month_end_us > now + 31 * DAY_US then
        local this_month = month_end(now)
        if this_month ~= a.month_end_us then
            if not ends_by_itself(a.seen_us, a.month_end_us) then a.known = 0 end
            if a.month_end_us <= now then a.month_cost = 0 end
            a.month_end_us = this_month
        end
    end
    a.seen_us = now
    return a
end

-- Every key lives as long as it means something: its holds, full buckets, windows in which something was used.
local function write(a)
    local sums = {}
    for _, name in ipairs(FIELDS) do
        sums[#sums + 1] = name
        sums[#sums + 1] = whole(a[name])
    end
    redis.call('HSET', a.sums, unpack(sums))
    local until_us = math.max(now + ask.hold_us, a.requests_full_us, a.tokens_full_us)
    if a.day_tokens > 0 then until_us = math.max(until_us, a.day_end_us) end
    if a.month_cost > 0 then until_us = math.max(until_us, a.month_end_us) end
    local ms = whole(math.ceil((until_us - now) / 1000))
    redis.call('PEXPIRE', a.sums, ms)
    redis.call('PEXPIRE', a.holds, ms)
    redis.call('PEXPIRE', a.expiries, ms)
end

-- The record of a hold: `settled`, or what it has taken from the buckets: tokens and requests.
local function recorded(key)
    local text = redis.call('GET', key)
    if not text then return 0, 0, 'unknown' end
    if text == 'settled' then return 0, 0, text end
    local tokens, requests = string.match(text, '^(%d+) (%d+)$')
    return tonumber(tokens), tonumber(requests), 'open'
end

local function record(key, tokens, requests)
    local text = whole(tokens) .. ' ' .. whole(requests)
    redis.call('SET', key, text, 'PX', whole((ask.hold_us + ask.kept_us) / 1000))
end

local function fill(a, tokens, requests)
    a.requests_full_us = filled(a.requests_full_us, requests, a.limits.requests_per_minute)
    a.tokens_full_us = filled(a.tokens_full_us, tokens, a.limits.tokens_per_minute)
end

local function leave_queue(a, held)
    if not held or held.queued == 0 then return end
    local gap = math.min(now - a.left_us, LONGEST_GAP_US)
    a.left_pace_ns = mean(a.left_pace_ns, math.floor(gap * 1000 / held.queued))
    a.left_us = now
end

local function bucket_fits(full, asked, limit)
    return not limit or (asked <= limit and math.max(now, full) + refill(asked, limit) - now <= MINUTE_US)
end

local function sum_fits(held, asked, limit) return not limit or (limit > 0 and held + asked <= limit) end

local function fits(a, tokens, cost)
    local l = a.limits
    return bucket_fits(a.requests_full_us, 1, l.requests_per_minute)
        and bucket_fits(a.tokens_full_us, tokens, l.tokens_per_minute)
        and sum_fits(a.running, 1, l.concurrent_requests)
        and sum_fits(a.held_queued, tokens, l.queued_tokens)
        and sum_fits(a.day_tokens + a.held_tokens, tokens, l.tokens_per_day)
        and sum_fits(a.month_cost + a.held_cost, cost, l.budget_per_month)
end

local levels = {}
for i = 1, #ask.limits do levels[i] = read(i) end
local RECORD = KEYS[3 * #levels + 1]
local tokens, requests, state = recorded(RECORD)
local status = 'done'

if ask.verb == 'reserve' then
    for _, a in ipairs(levels) do
        if not fits(a, ask.tokens, ask.cost) then status = 'refused' end
    end
    if state ~= 'unknown' then
        status = state -- settled: a late twin of a call that was given up; open: a second call, counted already
    elseif status == 'done' then
        for _, a in ipairs(levels) do
            if a.running == 0 then a.done_us = now end
            if a.held_queued == 0 then a.left_us = now end
            fill(a, ask.tokens, 1)
            put(a, ask.hold_id, {queued = ask.tokens, tokens = ask.tokens, cost = ask.cost})
        end
        record(RECORD, ask.tokens, 1)
    end
elseif ask.verb == 'started' and state == 'open' then
    for _, a in ipairs(levels) do
        local held = remove(a, ask.hold_id)
        if held then
            leave_queue(a, held)
            held.queued = 0
            put(a, ask.hold_id, held)
        end
    end
    record(RECORD, tokens, requests)
elseif ask.verb == 'grow' and state ~= 'settled' then
    for _, a in ipairs(levels) do
        local held = held_of(a, ask.hold_id) or {tokens = 0, cost = 0}
        local day, budget = a.limits.tokens_per_day, a.limits.budget_per_month
        if (day and a.day_tokens + a.held_tokens - held.tokens + ask.tokens > day)
            or (budget and a.month_cost + a.held_cost - held.cost + ask.cost > budget) then
            status = 'refused'
        end
    end
    if status == 'done' then
        for _, a in ipairs(levels) do
            fill(a, ask.tokens - tokens, 1 - requests)
            local held = remove(a, ask.hold_id)
            put(a, ask.hold_id, {queued = held and held.queued or 0, tokens = ask.tokens, cost = ask.cost})
        end
        record(RECORD, ask.tokens, 1)
    end
elseif ask.verb == 'renew' then
    for n, hold in ipairs(ask.holds) do
        local key = KEYS[3 * #levels + n]
        local had_tokens, had_requests, is = recorded(key)
        if is ~= 'settled' then
            for _, a in ipairs(levels) do
                fill(a, hold.tokens - had_tokens, 1 - had_requests)
                local before = remove(a, hold.id)
                local queued = math.min(hold.queued, before and before.queued or hold.queued)
                put(a, hold.id, {queued = queued, tokens = hold.tokens, cost = hold.cost})
            end
            record(key, hold.tokens, 1)
        end
    end
elseif ask.verb == 'settle' and state ~= 'settled' then
    for _, a in ipairs(levels) do
        local held = remove(a, ask.hold_id)
        if held then
            leave_queue(a, held)
            a.done_gap_us = mean(a.done_gap_us, math.min(now - a.done_us, LONGEST_GAP_US))
            a.done_us = now
        end
        a.day_tokens = a.day_tokens + ask.tokens
        a.month_cost = a.month_cost + ask.cost
        fill(a, ask.tokens - tokens, ask.requests - requests)
    end
    redis.call('SET', RECORD, 'settled', 'PX', whole(ask.kept_us / 1000))
end

if ask.verb == 'restore' then
    local a = levels[ask.level]
    if a.day_end_us == day_end(ask.at_us) and a.month_end_us == month_end(ask.at_us) then
        a.day_tokens, a.month_cost = math.max(a.day_tokens, ask.tokens), math.max(a.month_cost, ask.cost)
        a.known = 1
    end
end

local answer = {status, whole(now)}
for i, a in ipairs(levels) do
    if ask.verb == 'reserve' then
        local sums = {}
        for n, name in ipairs(FIELDS) do sums[n] = whole(a[name]) end
        answer[i + 2] = sums
    end
    write(a)
end
return answer
