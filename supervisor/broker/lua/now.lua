-- KEYS stream, for its server. Gives the server's clock, Unix ms.
-- include: clock
return now_ms()
