-- Who may do what: workers and attempts claim and settle, people's commands change, nobody else
-- but the owner writes any other way.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA rolecall FROM PUBLIC;
GRANT USAGE ON SCHEMA rolecall TO rolecall_worker, rolecall_operator;
GRANT SELECT ON ALL TABLES IN SCHEMA rolecall TO rolecall_worker, rolecall_operator;
GRANT EXECUTE ON FUNCTION rolecall.now(), rolecall.await, rolecall.claim, rolecall.raise_token,
    rolecall.take_over, rolecall.renew, rolecall.settle, rolecall.remember TO rolecall_worker, rolecall_operator;
GRANT EXECUTE ON FUNCTION rolecall.change, rolecall.ask, rolecall.begin_anew, rolecall.import,
    rolecall.imported
    TO rolecall_operator;
