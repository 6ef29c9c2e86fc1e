/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The same for every target, so that objects do not depend on the host's own asm headers. */
#include <asm-generic/types.h>
