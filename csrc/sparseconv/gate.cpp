#include "sparseconv/gate.hpp"

#include <algorithm>
#include <cmath>

namespace curvkern::sparseconv {
namespace {

constexpr int lanes = 16;

float total(const float (&part)[lanes]) {
    float sum = 0;
    for (int l = 0; l < lanes; ++l) sum += part[l];
    return sum;
}

float dot(const float* a, const float* b, std::int64_t n) {
    float part[lanes] = {};
    std::int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int l = 0; l < lanes; ++l) part[l] += a[i + l] * b[i + l];
    }
    for (int l = 0; i < n; ++i, ++l) part[l] += a[i] * b[i];
    return total(part);
}

float sigmoid(float z) {
    return 1 / (1 + std::exp(-z));
}

float activated(float z, Activation activation) {
    switch (activation) {
        case Activation::relu:
            return z < 0 ? 0 : z;
        case Activation::relu6:
            return std::clamp(z, 0.0F, 6.0F);
        case Activation::silu:
            return z * sigmoid(z);
        case Activation::hardswish:
            return z * std::clamp(z + 3, 0.0F, 6.0F) / 6;
        default:
            return z;
    }
}

}  // namespace

std::vector<std::int32_t> columns_of(const Plan& plan) {
    std::vector<std::int32_t> columns;
    for (std::int64_t part = 0; part < plan.parts(); ++part) {
        for (std::int64_t chunk = 0; chunk < plan.chunks(); ++chunk) {
            const Piece piece = plan.piece(part, chunk, nullptr, 0);
            const std::uint16_t* channel = piece.channel;
            for (const Run* run = piece.run; run != piece.run + piece.runs; ++run) {
                for (std::int64_t i = 0; i < std::int64_t{run->rows} * run->entries; ++i) {
                    const std::int64_t column = chunk * plan.channels() + *channel++;
                    for (int h = 0; h < plan.height(); ++h) {
                        columns.push_back(static_cast<std::int32_t>(column));
                    }
                }
            }
        }
    }
    return columns;
}

float mean_of(const float* x, std::int64_t n) {
    float part[lanes] = {};
    std::int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int l = 0; l < lanes; ++l) part[l] += x[i + l];
    }
    for (int l = 0; i < n; ++i, ++l) part[l] += x[i];
    return total(part) / static_cast<float>(n);
}

void excite(const Gate& gate, const float* mean, float* inner, float* scale) {
    for (std::int64_t i = 0; i < gate.inner; ++i) {
        const float z = dot(gate.squeeze + i * gate.channels, mean, gate.channels);
        inner[i] = activated(gate.squeeze_bias == nullptr ? z : z + gate.squeeze_bias[i],
                             gate.activation);
    }
    for (std::int64_t c = 0; c < gate.channels; ++c) {
        float z = dot(gate.excite + c * gate.inner, inner, gate.inner);
        if (gate.excite_bias != nullptr) z += gate.excite_bias[c];
        scale[c] = gate.hard ? std::clamp(z + 3, 0.0F, 6.0F) / 6 : sigmoid(z);
    }
}

}  // namespace curvkern::sparseconv
