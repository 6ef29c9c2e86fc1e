#include "inline.h"
__attribute__((noinline)) int step(int n) { __asm__ volatile("" : "+r"(n)); return n * 7; }
__attribute__((noinline)) int via_header2(int n) { return header(n) + 5; }
