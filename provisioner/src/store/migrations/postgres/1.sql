-- Times are nanoseconds since 1970 (UTC), money is millionths of a dollar.

CREATE TABLE store (
    one BIGINT PRIMARY KEY CHECK (one = 1),
    id TEXT NOT NULL,
    -- The last term that began, the last pass that began.
    term BIGINT NOT NULL,
    pass BIGINT NOT NULL,
    booked_until BIGINT
);

CREATE TABLE instances (
    id TEXT PRIMARY KEY,
    region TEXT NOT NULL,
    zone TEXT NOT NULL,
    instance_type TEXT NOT NULL,
    capacity_type TEXT NOT NULL,
    intent TEXT,
    pool TEXT NOT NULL,
    image TEXT NOT NULL,
    image_id TEXT,
    price BIGINT NOT NULL,
    launched_at BIGINT NOT NULL,
    private_address TEXT,
    -- JSON; null: go on.
    assignment TEXT,
    -- JSON.
    hold TEXT,
    suspected_at BIGINT,
    ended_at BIGINT,
    ended_for TEXT,
    -- Kept for a while, so that a late answer does not bring it back.
    gone_at BIGINT
);

-- A year's gone instances outnumber the others by far, and every pass reads the others.
CREATE INDEX instances_there ON instances (id) WHERE gone_at IS NULL;
CREATE INDEX instances_gone ON instances (gone_at) WHERE gone_at IS NOT NULL;

-- Apart from its instance, because it changes with every report and the instance seldom does.
CREATE TABLE hosts (
    instance TEXT PRIMARY KEY REFERENCES instances (id) ON DELETE CASCADE,
    -- What it registered with. Tokens are not here: they are made from a secret.
    key TEXT,
    registered_at BIGINT NOT NULL,
    heard_at BIGINT NOT NULL,
    activity TEXT NOT NULL,
    since BIGINT NOT NULL,
    job TEXT,
    runs BIGINT NOT NULL,
    interruption_at BIGINT
);

-- Instances the sweep suspects that are in no other table: nobody here launched them.
CREATE TABLE suspects (
    instance TEXT PRIMARY KEY,
    since BIGINT NOT NULL
);

CREATE TABLE intents (
    id TEXT PRIMARY KEY,
    -- JSON, word for word what is sent.
    request TEXT NOT NULL,
    pass BIGINT NOT NULL,
    made_at BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    not_before BIGINT,
    -- Why it is to be sent again.
    message TEXT,
    -- JSON; null: open.
    answer TEXT
);

CREATE INDEX intents_open ON intents (id) WHERE answer IS NULL;
CREATE INDEX intents_answered ON intents (made_at) WHERE answer IS NOT NULL;

CREATE TABLE shortages (
    -- JSON.
    key TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    message TEXT NOT NULL,
    failures BIGINT NOT NULL,
    found_at BIGINT NOT NULL,
    closed_until BIGINT NOT NULL
);

-- What became of each offering, by hours since 1970.
CREATE TABLE offering_hours (
    hour BIGINT NOT NULL,
    region TEXT NOT NULL,
    zone TEXT NOT NULL,
    instance_type TEXT NOT NULL,
    capacity_type TEXT NOT NULL,
    instance_hours DOUBLE PRECISION NOT NULL,
    interruptions BIGINT NOT NULL,
    PRIMARY KEY (hour, region, zone, instance_type, capacity_type)
);

-- Empty pool: the fleet.
CREATE TABLE maintenance (
    pool TEXT PRIMARY KEY,
    ordered_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    ordered_at BIGINT NOT NULL
);

CREATE TABLE spent (
    -- 2026-11-20, UTC.
    day TEXT NOT NULL,
    pool TEXT NOT NULL,
    amount BIGINT NOT NULL,
    PRIMARY KEY (day, pool)
);

CREATE TABLE pool_memory (
    pool TEXT PRIMARY KEY,
    -- JSON.
    memory TEXT NOT NULL
);

CREATE TABLE passes (
    id BIGINT PRIMARY KEY,
    began_at BIGINT NOT NULL,
    launches BIGINT NOT NULL,
    terminations BIGINT NOT NULL,
    faults BIGINT NOT NULL,
    -- The whole pass, JSON by gzip. Last, so that the others are read without it.
    body BYTEA NOT NULL
);

CREATE TABLE history (
    entry BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    done_at BIGINT NOT NULL,
    done_by TEXT NOT NULL,
    verb TEXT NOT NULL,
    instance TEXT,
    intent TEXT,
    pool TEXT,
    pass BIGINT,
    result TEXT NOT NULL
);

CREATE INDEX history_by_time ON history (done_at);
CREATE INDEX history_of_instance ON history (instance, entry) WHERE instance IS NOT NULL;
CREATE INDEX history_of_pool ON history (pool, entry) WHERE pool IS NOT NULL;
CREATE INDEX history_of_pass ON history (pass, entry) WHERE pass IS NOT NULL;
