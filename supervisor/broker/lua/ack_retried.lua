-- KEYS stream, retries, crashes[, replay stream]; ARGV group, id...
-- Acks messages that had failed before. Gives the number of acked messages.
-- include: settle
return settle(ARGV[1], KEYS[4], unpack(ARGV, 2))
