#include <stdio.h>
__attribute__((noinline)) int wanted(int x) { __asm__ volatile(""); return x + 1; }
int main(int argc, char **argv) { printf("%d\n", wanted(argc)); return 0; }
