// kernels_body.h for every instruction set.
#include "kernels.h"

#define OPERATORS attn2d
#include "every_level.h"
