-- name: insert_audit
INSERT INTO audit_logs (id, tenant_id, namespace, actor, action, resource, outcome, address, request_id, details)
VALUES (%(id)s, %(tenant)s, %(namespace)s, %(actor)s, %(action)s, %(resource)s, %(outcome)s, %(address)s, %(request_id)s,
        %(details)s);
