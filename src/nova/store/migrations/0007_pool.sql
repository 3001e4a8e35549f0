-- Functions that have instances ready at certain times are looked for every two seconds, as those with min_replicas are.

CREATE INDEX functions_provisioned ON functions (id)
    WHERE jsonb_array_length(data -> 'recorded' -> 'provisioned') > 0;
