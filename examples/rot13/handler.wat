;; Answers with its input in which every ASCII letter stands thirteen places further on.
(module
  (memory (export "memory") 2)

  ;; The input goes to the second page; each call begins with fresh memory, so nothing has to be freed.
  (func (export "alloc") (param $size i32) (result i32)
    (drop (memory.grow (i32.div_u (local.get $size) (i32.const 65536))))
    (i32.const 65536))

  (func (export "handle") (param $start i32) (param $size i32) (result i64)
    (local $at i32) (local $end i32)
    (local.set $at (local.get $start))
    (local.set $end (i32.add (local.get $start) (local.get $size)))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (i32.store8 (local.get $at) (call $rotate (i32.load8_u (local.get $at))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    ;; where the answer is, and how long
    (i64.or
      (i64.shl (i64.extend_i32_u (local.get $start)) (i64.const 32))
      (i64.extend_i32_u (local.get $size))))

  (func $rotate (param $char i32) (result i32)
    (local $place i32)
    ;; of the lower-case letter
    (local.set $place (i32.sub (i32.or (local.get $char) (i32.const 32)) (i32.const 97)))
    (if (i32.gt_u (local.get $place) (i32.const 25)) (then (return (local.get $char))))
    (i32.add
      (i32.sub (local.get $char) (local.get $place))
      (i32.rem_u (i32.add (local.get $place) (i32.const 13)) (i32.const 26)))))
