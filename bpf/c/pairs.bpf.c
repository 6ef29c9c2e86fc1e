// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Pairs: the programs of sites for those whose entry is paired with its return.
 * They are an object of their own, so that a hit that is only counted pays
 * nothing for them, and their maps exist only where they are used.
 */
#define PAIRS 1
#include "probity.bpf.c"
