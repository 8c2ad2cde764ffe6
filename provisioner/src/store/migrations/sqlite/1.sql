-- Times are nanoseconds since 1970 (UTC), money is millionths of a dollar.

CREATE TABLE store (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id TEXT NOT NULL,
    -- The last term that began, the last pass that began.
    term INTEGER NOT NULL,
    pass INTEGER NOT NULL,
    booked_until INTEGER
) STRICT;

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
    price INTEGER NOT NULL,
    launched_at INTEGER NOT NULL,
    private_address TEXT,
    -- JSON; null: go on.
    assignment TEXT,
    -- JSON.
    hold TEXT,
    suspected_at INTEGER,
    ended_at INTEGER,
    ended_for TEXT,
    -- Kept for a while, so that a late answer does not bring it back.
    gone_at INTEGER
) STRICT, WITHOUT ROWID;

-- A year's gone instances outnumber the others by far, and every pass reads the others.
CREATE INDEX instances_there ON instances (id) WHERE gone_at IS NULL;
CREATE INDEX instances_gone ON instances (gone_at) WHERE gone_at IS NOT NULL;

-- Apart from its instance, because it changes with every report and the instance seldom does.
CREATE TABLE hosts (
    instance TEXT PRIMARY KEY REFERENCES instances (id) ON DELETE CASCADE,
    -- What it registered with. Tokens are not here: they are made from a secret.
    key TEXT,
    registered_at INTEGER NOT NULL,
    heard_at INTEGER NOT NULL,
    activity TEXT NOT NULL,
    since INTEGER NOT NULL,
    job TEXT,
    runs INTEGER NOT NULL,
    interruption_at INTEGER
) STRICT, WITHOUT ROWID;

-- Instances the sweep suspects that are in no other table: nobody here launched them.
CREATE TABLE suspects (
    instance TEXT PRIMARY KEY,
    since INTEGER NOT NULL
) STRICT;

CREATE TABLE intents (
    id TEXT PRIMARY KEY,
    -- JSON, word for word what is sent.
    request TEXT NOT NULL,
    pass INTEGER NOT NULL,
    made_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    not_before INTEGER,
    -- Why it is to be sent again.
    message TEXT,
    -- JSON; null: open.
    answer TEXT
) STRICT;

CREATE INDEX intents_open ON intents (id) WHERE answer IS NULL;
CREATE INDEX intents_answered ON intents (made_at) WHERE answer IS NOT NULL;

CREATE TABLE shortages (
    -- JSON.
    key TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    message TEXT NOT NULL,
    failures INTEGER NOT NULL,
    found_at INTEGER NOT NULL,
    closed_until INTEGER NOT NULL
) STRICT;

-- What became of each offering, by hours since 1970.
CREATE TABLE offering_hours (
    hour INTEGER NOT NULL,
    region TEXT NOT NULL,
    zone TEXT NOT NULL,
    instance_type TEXT NOT NULL,
    capacity_type TEXT NOT NULL,
    instance_hours REAL NOT NULL,
    interruptions INTEGER NOT NULL,
    PRIMARY KEY (hour, region, zone, instance_type, capacity_type)
) STRICT, WITHOUT ROWID;

-- Empty pool: the fleet.
CREATE TABLE maintenance (
    pool TEXT PRIMARY KEY,
    ordered_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    ordered_at INTEGER NOT NULL
) STRICT;

CREATE TABLE spent (
    -- 2026-11-20, UTC.
    day TEXT NOT NULL,
    pool TEXT NOT NULL,
    amount INTEGER NOT NULL,
    PRIMARY KEY (day, pool)
) STRICT, WITHOUT ROWID;

CREATE TABLE pool_memory (
    pool TEXT PRIMARY KEY,
    -- JSON.
    memory TEXT NOT NULL
) STRICT;

CREATE TABLE passes (
    id INTEGER PRIMARY KEY,
    began_at INTEGER NOT NULL,
    launches INTEGER NOT NULL,
    terminations INTEGER NOT NULL,
    faults INTEGER NOT NULL,
    -- The whole pass, JSON by gzip. Last, so that the others are read without it.
    body BLOB NOT NULL
) STRICT;

CREATE TABLE history (
    entry INTEGER PRIMARY KEY AUTOINCREMENT,
    done_at INTEGER NOT NULL,
    done_by TEXT NOT NULL,
    verb TEXT NOT NULL,
    instance TEXT,
    intent TEXT,
    pool TEXT,
    pass INTEGER,
    result TEXT NOT NULL
) STRICT;

CREATE INDEX history_by_time ON history (done_at);
CREATE INDEX history_of_instance ON history (instance, entry) WHERE instance IS NOT NULL;
CREATE INDEX history_of_pool ON history (pool, entry) WHERE pool IS NOT NULL;
CREATE INDEX history_of_pass ON history (pass, entry) WHERE pass IS NOT NULL;
