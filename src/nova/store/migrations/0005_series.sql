-- Time series rolled up from the call records, and the spans of traces.

-- How far each roll-up has read; moved in the transaction that adds what was read.
CREATE TABLE rollup_positions (
    name  text PRIMARY KEY,
    seq   bigint NOT NULL
);
INSERT INTO rollup_positions (name, seq) VALUES ('calls', 0);

-- Roll-ups follow seq. Values only ever grow, so a row is added at the right edge of the index.
CREATE INDEX invocation_logs_seq_order ON invocation_logs (seq);

-- One row per function version and minute, and one for the whole namespace: that one has the nil function_id and version 0,
-- so that totals never cost more for more functions. durations counts calls by cell (nova.store.sketch), from cell 0 up to
-- the highest that was met.
CREATE TABLE metrics_minute (
    tenant_id        text NOT NULL,
    namespace        text NOT NULL,
    function_id      uuid NOT NULL,
    bucket           timestamptz NOT NULL,   -- its beginning
    version          int NOT NULL,
    function_name    text NOT NULL,          -- empty: the whole namespace
    invocations      bigint NOT NULL,
    errors           bigint NOT NULL,
    cold_starts      bigint NOT NULL,
    duration_sum_ms  double precision NOT NULL,
    duration_min_ms  double precision NOT NULL,
    duration_max_ms  double precision NOT NULL,
    durations        bigint[] NOT NULL,
    gb_seconds       double precision NOT NULL,
    PRIMARY KEY (tenant_id, namespace, function_id, bucket, version)
) WITH (fillfactor = 70);
CREATE INDEX metrics_minute_by_age ON metrics_minute USING brin (bucket) WITH (autosummarize = on);

CREATE TABLE metrics_hour (LIKE metrics_minute INCLUDING STORAGE) WITH (fillfactor = 70);
ALTER TABLE metrics_hour ADD PRIMARY KEY (tenant_id, namespace, function_id, bucket, version);
CREATE INDEX metrics_hour_by_age ON metrics_hour USING brin (bucket) WITH (autosummarize = on);

-- How many calls fell into each cell, from cell 0 up to the highest.
CREATE FUNCTION cell_counts(cells int[]) RETURNS bigint[] LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    counts bigint[] := '{}';
    highest int := -1;
    cell int;
BEGIN
    FOREACH cell IN ARRAY cells LOOP
        highest := greatest(highest, cell);
    END LOOP;
    counts := array_fill(0::bigint, ARRAY[highest + 1]);
    FOREACH cell IN ARRAY cells LOOP
        counts[cell + 1] := counts[cell + 1] + 1;
    END LOOP;
    RETURN counts;
END $$;

-- The sum of two such arrays, whose lengths may differ.
CREATE FUNCTION add_counts(a bigint[], b bigint[]) RETURNS bigint[] LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT array_agg(coalesce(x, 0) + coalesce(y, 0) ORDER BY place)
      FROM unnest(a, b) WITH ORDINALITY AS pairs (x, y, place)
$$;

CREATE TABLE trace_spans (
    tenant_id    text NOT NULL,
    namespace    text NOT NULL,
    trace_id     text NOT NULL,              -- 32 hexadecimal digits
    span_id      text NOT NULL,              -- 16
    parent_id    text,                       -- of a caller's span perhaps, which is not here
    request_id   uuid,
    function_name text,
    name         text NOT NULL,
    plane        text NOT NULL,
    node         text NOT NULL,
    started_at   timestamptz NOT NULL,
    duration_us  bigint NOT NULL,
    error        text,
    attributes   jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (tenant_id, namespace, trace_id, span_id)
);
CREATE INDEX trace_spans_by_request ON trace_spans (tenant_id, namespace, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX trace_spans_by_age ON trace_spans USING brin (started_at) WITH (autosummarize = on);
