    .code64
    .globl _start
    .section .text
_start:
    cli
    mov $0x3f8, %dx
    lea banner(%rip), %rsi
1:  lodsb
    test %al, %al
    jz 2f
    out %al, %dx
    jmp 1b
2:  rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, %rbx
3:  pause
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    sub %rbx, %rax
    cmp $100000000, %rax
    jb 3b
    mov $0x3f8, %dx
    movb letter(%rip), %al
    out %al, %dx
    mov $10, %al
    out %al, %dx
    incb letter(%rip)
    cmpb $'z', letter(%rip)
    jbe 2b
    movb $'a', letter(%rip)
    jmp 2b
    .section .data
letter: .byte 'a'
banner: .asciz "hello from the kernel\n"
