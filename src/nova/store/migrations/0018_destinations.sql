-- Outcomes of asynchronous calls may also be published to topics and begin workflows. Code that does not know these two gives
-- such an event up as dead, as it does with every target it cannot reach.
-- min_code: 0011
ALTER TABLE event_outbox DROP CONSTRAINT event_outbox_target_type_check;
ALTER TABLE event_outbox ADD CONSTRAINT event_outbox_target_type_check
    CHECK (target_type IN ('function', 'topic', 'workflow', 'webhook'));
