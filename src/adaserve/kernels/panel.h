// What all matrix products share: weights lie in panels of C outputs, and threads take runs of panels.
#pragma once

#include "simd.h"

constexpr int V = 3;      // vectors across a panel
constexpr int C = V * W;  // outputs of a panel
constexpr long ALONE = 1 << 16;  // products below which a second thread costs more than it brings
constexpr long PARTS = 8;        // runs of panels, several a thread, so that a thread that is held up holds up little
